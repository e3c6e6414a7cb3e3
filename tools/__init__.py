"""Command line tools: thin mains over importable functions.  Run one with `python -m tools.<name>`."""
