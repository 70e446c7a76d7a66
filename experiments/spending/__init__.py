"""Compares how a step should be spent: many short rollouts, few full ones, continued ones; each at its best rate."""
