"""Models written in the tile language, each with a torch-only reference."""
