"""Rollouts by vLLM: colocated with the trainer, or on servers. Both decode with a copy of the student's weights."""
