from __future__ import annotations

import threading

import pytest

from tests.ring.networks import GrpcWires, MemoryWires


@pytest.fixture(autouse=True)
def no_leaked_threads():
    """Every thread a test starts has ended soon after it."""
    before = set(threading.enumerate())
    yield
    for thread in set(threading.enumerate()) - before:
        thread.join(10)
        assert not thread.is_alive(), f"{thread.name} is still running"


@pytest.fixture(params=[MemoryWires, GrpcWires], ids=["memory", "grpc"])
def wires(request, no_leaked_threads):
    made = request.param()
    yield made
    made.close()
