"""The teacher's scores of the student's rollouts."""

from hopd.teacher.local import BaseTeacher, LocalTeacher
from hopd.teacher.remote import ServerTeacher
from hopd.teacher.teacher import RoutedTeacher, Teacher

__all__ = ["BaseTeacher", "LocalTeacher", "RoutedTeacher", "ServerTeacher", "Teacher"]
