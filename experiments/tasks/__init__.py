"""Holds tasks that only experiments need; a recipe names one as `source: experiments.tasks.two_phase:TwoPhase`."""
