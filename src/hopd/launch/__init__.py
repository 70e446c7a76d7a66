"""Starts a run on the workers of a cluster. It knows nothing of a step: each worker runs the usual loop."""
