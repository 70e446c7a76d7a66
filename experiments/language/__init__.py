"""Holds the experiments on small language models: what they share (setting, pairs, horizons), and a file a page."""
