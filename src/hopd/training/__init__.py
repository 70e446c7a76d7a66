"""Turns rollouts into optimiser steps: prompt order, gradient, update, and the statistics of a step.

It does not decide the horizon, sample rollouts, evaluate or write files; `hopd.distiller` is the loop.
"""
