"""Several real daemons on this machine, each with a home of its own, that end when the demo does."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from edged.cli.import_model import import_file
from edged.cli.progress import follow
from edged.cli.ring_text import device_names, ring_text
from edged.cli.terminal import say
from edged.errors import DaemonError, PlanError
from edged.frontdoor.client import FrontDoorClient, open_front_door
from edged.rpc.messages import StatusAnswer
from edged.settings import daemon_socket

LOOK_S = 0.1  # between two looks at a daemon that starts: it has nobody to tell yet
START_S = 60.0
FIND_S = 30.0  # for mDNS; after that the devices are told where the first one is
STOP_S = 15.0  # for a daemon to end by itself
OWN = ("HOME", "NAME", "PORT", "HTTP", "JOIN", "PEER", "MEMORY", "MODEL", "API_KEY", "THREADS")
"""EDGED_ variables that the demo sets itself, or that would make its devices fight."""


class TooSlowError(DaemonError):
    """What was awaited did not come; a local matter of the demo."""


class DemoDevice:
    """One `edged start` in a process group of its own; it ends when its standard input does."""

    def __init__(self, root: Path, name: str, threads: int) -> None:
        self.name = name
        self.home = root / name
        self.port = free_ports()
        self._threads = threads
        self._log = root / f"{name}.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, token: str | None = None, peer: str | None = None) -> None:
        environ = {key: value for key, value in os.environ.items() if key.removeprefix("EDGED_") not in OWN}
        if token is not None:
            environ["EDGED_JOIN"] = token  # not an argument: those are public
        if peer is not None:
            environ["EDGED_PEER"] = peer
        self.home.mkdir(mode=0o700, exist_ok=True)
        flags = {
            "--home": self.home,
            "--name": self.name,
            "--port": self.port,
            "--http": f"127.0.0.1:{free_ports()}",
            "--threads": self._threads,
        }
        words = [str(word) for flag in flags.items() for word in flag]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "edged", "start", "--until-eof", *words],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=environ,
                process_group=0,  # a Ctrl-C at the terminal is the demo's, not the daemons'
            )

    def has_ended(self) -> bool:
        return self._process is None or self._process.poll() is not None

    def is_up(self) -> bool:
        """Whether it answers. Raises DaemonError, with its last words, if it has ended."""
        if self.has_ended():
            code = "" if self._process is None else f" (exit code {self._process.returncode})"
            raise DaemonError(f"{self.name} has ended{code}: {self._last_words()}")
        return daemon_socket(self.home).exists()

    def front_door(self) -> AbstractContextManager[FrontDoorClient]:
        return open_front_door(daemon_socket(self.home))

    def ask_to_stop(self) -> None:
        if self._process is not None:
            if self._process.stdin is not None:
                self._process.stdin.close()
            self._signal(signal.SIGTERM)

    def wait(self, deadline: float) -> None:
        """Until it has ended; by force once `deadline` (monotonic seconds) has passed."""
        if self._process is None:
            return
        try:
            self._process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            say(f"{self.name} does not stop; killing it")
        self._signal(signal.SIGKILL)  # the group: also what a daemon may have left behind
        self._process.wait()

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)

    def _last_words(self) -> str:
        with self._log.open(errors="replace") as log:
            words = [line.strip() for line in deque(log, maxlen=20) if line.strip()]
        return words[-1] if words else "it said nothing"


class DemoCluster:
    """`count` devices that share the machine's `threads`. Leaving the context removes everything."""

    def __init__(self, count: int, threads: int) -> None:
        self._root = Path(tempfile.mkdtemp(prefix="edged-"))
        self.devices = [
            DemoDevice(self._root, f"demo-{index + 1}", max(1, threads // count)) for index in range(count)
        ]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with _uninterrupted():
            for device in self.devices:
                device.ask_to_stop()
            deadline = time.monotonic() + STOP_S
            for device in self.devices:
                device.wait(deadline)
            shutil.rmtree(self._root, ignore_errors=True)

    def front_door(self) -> AbstractContextManager[FrontDoorClient]:
        return self.devices[0].front_door()

    def start(self, model: Path) -> None:
        """Until every device is in the ring. Raises DaemonError, PlanError, and what importing raises."""
        first, *others = self.devices
        name = import_file(first.home, model)
        say(f"starting {first.name}")
        first.start()
        _until(first.is_up, START_S, f"{first.name} does not answer")
        with first.front_door() as client:
            self._join(client, others)
            follow(client.load(name))
            status = client.status()
            self._check(status)
        say(f"ring: {ring_text(status)}")
        if status.http:
            say(f"HTTP: http://{status.http}/v1")

    def _join(self, client: FrontDoorClient, others: list[DemoDevice]) -> None:
        for device in others:
            say(f"starting {device.name}, which joins by token")
            device.start(client.token().token)

        def joined() -> bool:
            return all(device.is_up() for device in others) and not self._missing(client.status())

        def joined_or_lost() -> bool:
            return not self._missing(client.status()) or any(device.has_ended() for device in others)

        with contextlib.suppress(TooSlowError):
            _until(joined_or_lost, FIND_S, "")
        missing = [device for device in others if device.name in self._missing(client.status())]
        if missing:
            say("they do not find each other, so multicast may be blocked; trying again with an address")
        for device in missing:
            device.ask_to_stop()
            device.wait(time.monotonic() + STOP_S)
            device.start(client.token().token, peer=f"127.0.0.1:{self.devices[0].port}")
        _until(joined, START_S, "not every device has joined")
        say(f"{len(others) + 1} devices have found each other")

    def _missing(self, status: StatusAnswer) -> list[str]:
        alive = {member.name for member in status.members if member.state == "alive"} | {status.name}
        return [device.name for device in self.devices if device.name not in alive]

    def _check(self, status: StatusAnswer) -> None:
        in_ring = set(status.plan.devices) if status.plan else set()
        if len(in_ring) == len(self.devices):
            return
        names = device_names(status)
        reasons = (
            [f"{names.get(out.device, out.device[:12])}: {out.reason}" for out in status.plan.left_out]
            if status.plan
            else []
        )
        raise PlanError(
            f"only {len(in_ring)} of {len(self.devices)} devices are in the ring; "
            + ("; ".join(reasons) or status.problem or "edged status says nothing about it")
        )


def _until(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Look until `condition` holds. Raises TooSlowError(what), and what the condition raises."""
    never = threading.Event()
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TooSlowError(what)
        never.wait(LOOK_S)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def free_ports() -> int:
    """A port that is free together with the one after it."""
    while True:
        with socket.socket(socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET) as one:
            one.bind(("", 0))
            port = int(one.getsockname()[1])
            with socket.socket(one.family) as two, contextlib.suppress(OSError, OverflowError):
                two.bind(("", port + 1))
                return port
