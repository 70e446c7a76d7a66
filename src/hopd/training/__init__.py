"""The loop, the step, the checkpoint, the ledger."""
