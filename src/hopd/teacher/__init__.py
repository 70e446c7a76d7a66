"""The teacher's scores of the student's rollouts."""

from hopd.teacher.local import LocalTeacher
from hopd.teacher.server import ServerTeacher
from hopd.teacher.teacher import RoutedTeacher, Teacher

__all__ = ["LocalTeacher", "RoutedTeacher", "ServerTeacher", "Teacher"]
