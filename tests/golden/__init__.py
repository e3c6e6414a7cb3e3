"""The harness, tried on small programs that are wrong in one known way each."""
