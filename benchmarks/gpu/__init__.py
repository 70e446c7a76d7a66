"""hopd on one GPU: what it computes there, how fast, in how much memory. `make gpu` writes `results/gpu.md`.

It needs no network and no installation: models are the quickstart's, or random weights in a known shape.
"""
