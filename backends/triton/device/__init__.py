"""What the emitted kernels call: compiled by Triton, together with them."""
