"""Device code in CuTe DSL that emitted kernels call; imported where kernels are compiled."""
