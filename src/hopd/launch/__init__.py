"""Starts a run on machines that others manage."""
