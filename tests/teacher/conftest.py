"""Shares a student, a teacher and a scripted server, which has no faults at the start of each test, within a file."""

import pytest

from hopd.model import load
from tests.teacher.scripted import STUDENT, TEACHER, Scripted


@pytest.fixture(scope="module")
def student():
    return load(STUDENT)


@pytest.fixture(scope="module")
def teacher():
    return load(TEACHER)


@pytest.fixture(scope="module")
def process_of_server():
    server = Scripted()
    yield server
    server.end()


@pytest.fixture
def server(process_of_server):
    process_of_server.tell("faults", [])
    process_of_server.tell("limit", 512)
    return process_of_server
