"""Starts the scripted server of rollouts."""

from pathlib import Path

from tests.teacher.scripted import Scripted


class ScriptedRollouts(Scripted):
    script = Path(__file__).with_name("scripted_rollouts.py")
