"""Horizon control inside other trainers. Each module needs its trainer, and of hopd no more than `hopd.horizon`."""
