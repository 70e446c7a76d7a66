"""Keeps what a run leaves and shows: directory, checkpoints, ledger, progress. It knows neither steps nor losses."""
