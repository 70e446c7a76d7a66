"""What a student and a teacher are like, position by position, before anybody trains."""

from hopd.analysis.probe import Probe, probe

__all__ = ["Probe", "probe"]
