"""A cluster in the emulated home, with limited memory, links and disks, that counts what its tokens cost."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.cluster import RunningCluster
from benchmarks.stores import forget_store, link_store
from edged.device.speed_record import ENOUGH_TIMES
from tests.lab import Delay, Device, Home, LabError, Usage, usage_of

LOAD_S = 600.0
SURVEY_S = 120.0
HTTP_PORT = 7480
MEASURE = """
import sys
from pathlib import Path
from edged.device.local_device import measure
measure(int(sys.argv[1]), None, Path(sys.argv[2]))
"""
COUNTED = "edged_"
COMPUTE = "edged_hop_compute_seconds_total"
FRAMES = "edged_hop_frames_total"


@dataclass(frozen=True, slots=True)
class Limits:
    """Of a device: sizes as the lab writes them, None for no limit."""

    memory: str | None
    link: str | None = None
    delay: Delay | None = None
    disk_rate: str | None = None
    cores: tuple[int, ...] = ()  # processors it may use; (): all
    threads: int | None = None  # None: as many as the cluster's other devices


@dataclass(frozen=True, slots=True)
class HopCount:
    """Of one device's windows, since its ring began."""

    compute_s: dict[str, float]  # by place in the ring
    frames: dict[str, float]


@dataclass(frozen=True, slots=True)
class Decoded:
    """One answer, token by token."""

    tokens: tuple[int, ...]
    at: tuple[float, ...]  # when each came
    usage: tuple[tuple[Usage, ...], ...]  # for each token, of every daemon, when it came


class EmulatedCluster(RunningCluster):
    """A head that owns the model and workers that joined, with the parts in every store already."""

    def __init__(
        self,
        prepared: Path,
        nodes: int,
        limits: Limits | Sequence[Limits],
        threads: int,
        *flags: str,
        surveyed: bool = False,
    ) -> None:
        """limits: of all devices, or of each. surveyed: load only when all links have been measured, and
        the devices as often as a daemon does in its first starts.
        """
        super().__init__()
        self._threads = threads
        self.home = self._stack.enter_context(Home())
        self.devices: list[Device] = []
        try:
            forget_store(prepared)
            each = [limits] * nodes if isinstance(limits, Limits) else limits
            for number, own in enumerate(each):
                self._add(prepared, number, own, flags, surveyed)
            if surveyed:
                self._wait_for_links(len(each))
            self.open_door()
            self.load(lambda _: True, LOAD_S)
        except BaseException as error:
            logs = self.home.logs()
            self.close()
            error.add_note(logs)
            raise

    def _add(self, prepared: Path, number: int, limits: Limits, flags: Sequence[str], surveyed: bool) -> None:
        device = self.home.device(
            f"d{number}",
            cores=limits.cores,
            memory=limits.memory,
            link=limits.link,
            delay=limits.delay,
            disk_rate=limits.disk_rate,
        )
        self.devices.append(device)
        link_store(prepared, device.home, owner=number == 0)
        joining = ("--join", self.daemons[0].token()) if number else ()
        threads = limits.threads or self._threads
        if surveyed:
            _measure(device, threads)
        daemon = device.start_daemon("--threads", str(threads), *joining, *flags)
        self.daemons.append(daemon)
        daemon.wait_until(lambda status: len(status.members) > number, "cluster")

    def _wait_for_links(self, nodes: int) -> None:
        """Until every pair has been measured, in both directions."""
        self.daemons[0].wait_until(
            lambda status: len(status.links) == nodes * (nodes - 1), "measured links", SURVEY_S
        )

    def budgets(self) -> dict[str, int]:
        """By device id, what each may hold in layers and caches, as it told the planner for the running plan.

        Not what it tells now: of what it holds already, it leaves nothing free for others.
        """
        devices = self.plan.expected.devices if self.plan.expected is not None else ()
        return {one.device: one.memory + one.memory_left for one in devices}

    def ids(self) -> list[str]:
        """Device ids in the order of `devices`."""
        return [daemon.status().device for daemon in self.daemons]

    def decode(self, prompt: Sequence[int], max_tokens: int) -> Decoded:
        """One greedy answer of exactly `max_tokens` tokens."""
        tokens: list[int] = []
        at: list[float] = []
        usage: list[tuple[Usage, ...]] = []
        for came in self.tokens(prompt, max_tokens):
            tokens += came
            at += [time.perf_counter()] * len(came)
            usage += [self.usage()] * len(came)
        return Decoded(tuple(tokens), tuple(at), tuple(usage))

    def usage(self) -> tuple[Usage, ...]:
        return tuple(usage_of(daemon.process.pid) for daemon in self.daemons)

    def counters(self) -> dict[str, float]:
        """Sums over the daemons' own counters, by name."""
        sums: dict[str, float] = {}
        for device in self.devices:
            for line in _metrics(device).splitlines():
                name, _, value = line.rpartition(" ")
                if name.startswith(COUNTED):
                    key = name.partition("{")[0]
                    sums[key] = sums.get(key, 0.0) + float(value)
        return sums

    def hop_counts(self) -> list[HopCount]:
        """In the order of `devices`."""
        return [_hop_count(_metrics(device)) for device in self.devices]


def _measure(device: Device, threads: int) -> None:
    """All but the last of the measurements after which a daemon is certain of its device."""
    for _ in range(ENOUGH_TIMES - 1):
        device.run([sys.executable, "-c", MEASURE, str(threads), str(device.home)])


def _hop_count(page: str) -> HopCount:
    found: dict[str, dict[str, float]] = {COMPUTE: {}, FRAMES: {}}
    for line in page.splitlines():
        labelled, _, value = line.rpartition(" ")
        name, _, labels = labelled.partition("{")
        if name in found:
            hop = labels.partition('hop="')[2].partition('"')[0]
            found[name][hop] = float(value)
    return HopCount(found[COMPUTE], found[FRAMES])


def _metrics(device: Device) -> str:
    """The page that Prometheus would read, fetched from inside: HTTP is on the device's loopback only."""
    with device.namespace.connect(HTTP_PORT) as client:
        client.sendall(f"GET /metrics HTTP/1.0\r\nHost: 127.0.0.1:{HTTP_PORT}\r\n\r\n".encode())
        received = b""
        while piece := client.recv(65536):
            received += piece
    head, _, body = received.decode().partition("\r\n\r\n")
    if " 200 " not in head.partition("\r\n")[0]:
        raise LabError(f"{device.name}: no metrics: {head.splitlines()[0]}")
    return body
