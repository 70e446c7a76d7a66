"""Teachers score the student's rollouts: in this process, or behind a server. The room knows neither the loop nor the
optimizer."""

from hopd.teacher.local import BaseTeacher, LocalTeacher
from hopd.teacher.remote import RemoteTeacher
from hopd.teacher.teacher import RoutedTeacher, Teacher

__all__ = ["BaseTeacher", "LocalTeacher", "RemoteTeacher", "RoutedTeacher", "Teacher"]
