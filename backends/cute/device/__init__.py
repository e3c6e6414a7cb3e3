"""Device code in CuTe DSL that emitted kernels call.  Imported on a machine that compiles, never to launch."""
