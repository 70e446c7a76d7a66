"""Holds the paper's two navigation tasks: Gaussian policies, whose actions are the tokens, under hopd's own horizons.

What the tasks share are the course, the policies, REINFORCE and the distillation; the other files are a page each.
"""
