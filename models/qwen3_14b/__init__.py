"""Qwen3-14B: 40 dense decoder layers with grouped-query attention, per-head q/k norms and SwiGLU."""
