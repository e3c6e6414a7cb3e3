"""What `tools/bench.py` is made of.

`catalogue` and `kernels` say which programs are measured, and `prepare` compiles them; `data` makes what they
run on, `check` compares results with fp64, `stock`, `attention` and `delta` are PyTorch's layers on the same
data; `measure` times, `stamps` reads timing builds, `reading` finds the read ceiling, `report` prints.
"""
