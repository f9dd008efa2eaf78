"""A peer whose cable is pulled says nothing: only keepalive notices."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from edged.cluster.identity import Identity
from tests.lab import Home

ROOT = Path(__file__).parents[2]

SERVE = """
import signal, sys, threading
from pathlib import Path
from edged.cluster.identity import load
from edged.rpc.server import serve
from tests.rpc.servicers import Failing
stop = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: stop.set())
with serve(load(Path(sys.argv[1])), [Failing().add_to], 4242):
    print("serving", flush=True)
    stop.wait()
"""

STREAM = """
import sys, threading
from pathlib import Path
import grpc
from edged.cluster.identity import load
from edged.rpc import edged_pb2, edged_pb2_grpc
from edged.rpc.channel import connect
from edged.rpc.status import unwrap
channel = connect(load(Path(sys.argv[1])), sys.argv[2], sys.argv[3], 4242)
ended = threading.Event()
def frames():
    yield edged_pb2.Frame()
    print("streaming", flush=True)
    ended.wait()
try:
    edged_pb2_grpc.RingStub(channel).Pass(frames())
except grpc.RpcError as error:
    print(type(unwrap(error, "nas")).__name__, flush=True)
ended.set()
channel.close()
"""


@pytest.mark.root
def test_a_pulled_cable_ends_an_idle_stream(home: Home, founder: Identity, member: Identity) -> None:
    nas, pi = home.device("nas"), home.device("pi")
    prelude = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})"]
    serving = nas.popen([*prelude[:2], f"{prelude[2]}\n{SERVE}", str(founder.home)])
    serving.wait_for_line("serving")
    script = f"{prelude[2]}\n{STREAM}"
    streaming = pi.popen([*prelude[:2], script, str(member.home), founder.device, nas.address])
    streaming.wait_for_line("streaming")
    nas.unplug()
    streaming.wait_for_line("PeerLostError")
