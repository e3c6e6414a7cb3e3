"""The larger commands of ``pypto-models``, one file each; ``add`` takes the subparsers."""
