"""Keeps the files of a run and shows its progress: directory, checkpoints, ledger. It knows what a step measured, not
how it is made."""
