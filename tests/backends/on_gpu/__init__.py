"""On a GPU: blocks, layers, graphs and random programs against their goldens; see README.md."""
