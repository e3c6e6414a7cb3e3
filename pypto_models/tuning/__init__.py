"""Choosing schedules by measurement: plan variants anywhere, time them on the device, write the best down.

``planning`` cuts the regions to be tuned out of a program (``part``), enumerates schedules and constants for
each, and keeps them compiled in one folder (``records``).  ``running`` checks each on the device against the
simulator's results and times it; ``picking`` writes what won into a tiling file.
"""
