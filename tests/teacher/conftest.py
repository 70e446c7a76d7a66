"""One scripted server for the tests of a file, without faults at the start of each test."""

import pytest

from tests.teacher.scripted import Scripted


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
