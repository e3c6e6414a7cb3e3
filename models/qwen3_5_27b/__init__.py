"""Qwen3.5-27B: 48 gated-delta-net layers and 16 gated full-attention layers, all with a dense MLP."""
