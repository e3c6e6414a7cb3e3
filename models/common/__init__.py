"""Blocks of decoder layers in the kernel language, shared by the models.

The blocks read their sizes from `sizes.py`; a model overrides them by name when it compiles.
"""
