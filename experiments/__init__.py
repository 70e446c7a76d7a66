"""Runs the paper's experiments at a size for two cores; a part of the checkout, and not of the wheel.

Importing this package loads no experiment: a recipe names the tasks in it, and only `catalogue` knows all pages.
"""
