"""Controls the horizon inside other trainers.

Each module needs its trainer installed, and uses only `hopd.horizon` and `hopd.errors` of hopd.
"""
