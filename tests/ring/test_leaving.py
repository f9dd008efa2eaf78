"""Whoever leaves a ring waits for nobody."""

from __future__ import annotations

import socket
import threading

import grpc
import numpy as np
import pytest

from edged.errors import RingBrokenError, WindowError
from edged.ring.frame import Frame
from edged.ring.grpc_transport import GrpcLink, GrpcTransport
from edged.ring.stage import Stage
from edged.rpc.server import peer_device
from tests.ring.fakes import WIDTH, NotedWindow, Sink, batch_of, plan_of, windows_of

WAIT = 20


def test_leaving_the_ring_ends_the_compute_in_progress(wires):
    running, cancelled = threading.Event(), threading.Event()

    class Endless(NotedWindow):
        def run(self, batch, inputs):
            running.set()
            assert cancelled.wait(WAIT)
            raise WindowError("the run was cancelled")

        def cancel(self) -> None:
            if running.is_set():
                cancelled.set()

    plan = plan_of(("a", 2), ("b", 3), ("a", 1))
    a = wires.transport("a")
    a.attach(Sink())
    stage = Stage(plan, "b", {1: windows_of(plan, Endless)[1]}, wires.transport("b"), lambda _: None)
    stage.connect()
    stage.receive(Frame(1, 1, 0, (), batch_of((0, 0)), np.zeros((1, WIDTH), np.float32)), "a")
    assert running.wait(WAIT)
    stage.close()
    assert cancelled.is_set()
    a.detach(1)


def test_a_link_that_does_not_open_is_given_up(monkeypatch):
    opening = threading.Event()
    really_open = GrpcLink.open

    def open_noted(link: GrpcLink) -> None:
        opening.set()
        really_open(link)

    monkeypatch.setattr("edged.ring.grpc_transport.OPEN_S", 1000.0)
    monkeypatch.setattr(GrpcLink, "open", open_noted)
    with socket.create_server(("127.0.0.1", 0)) as mute:  # takes connections and never says a word
        port = mute.getsockname()[1]
        transport = GrpcTransport(lambda _: grpc.insecure_channel(f"127.0.0.1:{port}"), peer_device)
        leaving = threading.Thread(target=lambda: (opening.wait(), transport.detach(7)), name="leaving")
        leaving.start()
        with pytest.raises(RingBrokenError, match="it left the ring"):  # the call was cancelled
            transport.connect("b", 7, Sink.form, 8, lambda _: None)
        leaving.join()
        with pytest.raises(RingBrokenError, match="this device has left"):
            transport.connect("b", 7, Sink.form, 8, lambda _: None)
