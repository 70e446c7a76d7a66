"""What a run leaves and shows: its directory, checkpoints, ledger and progress. It knows no models but to save them."""
