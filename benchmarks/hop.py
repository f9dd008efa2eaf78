"""What one hop costs apart from its window: receive, decode, queue, encode, send.

Rings of two and three processes on loopback, with mutual TLS and without, whose windows compute nothing
(or, with --compute-ms, hash for so long with the interpreter lock released). One frame of one token goes
round at a time. Own time of a hop = (time round the ring - all windows' compute) / links. Aim: 0.5 ms.

    python -m benchmarks.hop [--compute-ms 2] [--json FILE]
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing as mp
import statistics
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from time import perf_counter

import grpc
import numpy as np

from benchmarks.compare import arguments, machine
from edged.backend.window import Batch, Hidden, KvOp, Logits, Tokens, WindowMemory
from edged.cluster import authority
from edged.planning.plan import ContextOptions, Hop, Plan
from edged.ring.grpc_transport import GrpcTransport
from edged.ring.ring import Result, Ring
from edged.ring.stage import Stage
from edged.rpc.channel import connect
from edged.rpc.options import CLIENT, SERVER
from edged.rpc.server import Server, peer_device, serve

STATE_BYTES = (4096, 16384, 65536)
WARM_UP = 50  # trips before the first measured one


class HashingWindow:
    """Costs a set time, and passes on what it was given."""

    memory = WindowMemory(0, 0, 0)

    def __init__(self, hop: Hop, width: int, load: bytes) -> None:
        self.first, self.last, self.width = hop.first, hop.last, width
        self._load = load
        self._state: Hidden = np.zeros((1, width), np.float32)

    def run(self, batch: Batch, inputs: Tokens | Hidden) -> Hidden:
        del batch
        hashlib.sha256(self._load)
        return self._state if self.first == 0 else np.asarray(inputs, np.float32)

    def run_last(self, batch: Batch, inputs: Tokens | Hidden) -> Logits:
        del batch, inputs
        hashlib.sha256(self._load)
        return np.zeros((1, 1), np.float32)

    def apply(self, op: KvOp) -> bool:
        return op.kind == "clear"

    def stream(self, layers: Sequence[int], spare: int = 0) -> None:
        pass

    def close(self) -> None:
        pass


@dataclass(frozen=True)
class Certificates:
    key_pem: bytes
    certificate_pem: bytes
    ca_pem: bytes
    cluster: str = "benchmark"
    key_file: Path = Path()
    certificate_file: Path = Path()


@dataclass
class Device:
    """One process: its server, and a ring per size of state."""

    name: str
    names: tuple[str, ...]
    certificates: Certificates | None  # None: no TLS
    load: bytes
    ports: dict[str, int] = field(default_factory=dict)

    def serve(self) -> int:
        before = self.names[self.names.index(self.name) - 1]
        who = peer_device if self.certificates else lambda _: before
        self.transport = GrpcTransport(self._channel, who)
        if self.certificates:
            self.server = serve(self.certificates, [self.transport.add_to], 0)
            return self.server.port
        pool = ThreadPoolExecutor(16)
        server = grpc.server(pool, options=SERVER)
        self.transport.add_to(server)
        port = int(server.add_insecure_port("127.0.0.1:0"))
        server.start()
        self.server = Server(server, pool, port)
        return port

    def _channel(self, to: str) -> grpc.Channel:
        if self.certificates:
            return connect(self.certificates, to, "127.0.0.1", self.ports[to])
        return grpc.insecure_channel(f"127.0.0.1:{self.ports[to]}", options=CLIENT)

    def plan(self, epoch: int) -> Plan:
        hops = tuple(
            Hop(device=name, first=i, last=i + 1) for i, name in enumerate((*self.names, self.names[0]))
        )
        context = ContextOptions(n_ctx=64, n_seq_max=1, n_ubatch=16)
        return Plan(epoch=epoch, model="none", n_layers=len(hops), hops=hops, context=context)

    def windows(self, plan: Plan, state_bytes: int) -> dict[int, HashingWindow]:
        width = state_bytes // 4
        return {hop: HashingWindow(plan.hops[hop], width, self.load) for hop in plan.hops_of(self.name)}


def be_worker(device: Device, pipe: Connection) -> None:
    """A process of a ring: says its port, learns the others', joins, reports its compute when asked."""
    pipe.send(device.serve())
    device.ports = pipe.recv()
    stages = []
    for epoch, state_bytes in enumerate(STATE_BYTES, start=1):
        plan = device.plan(epoch)
        stages.append(
            Stage(plan, device.name, device.windows(plan, state_bytes), device.transport, lambda _: None)
        )
    pipe.send("attached")
    for stage in stages[: pipe.recv()]:
        stage.connect()
    pipe.send("connected")
    while (epoch := pipe.recv()) is not None:
        pipe.send(sum(hop.compute_s for hop in stages[epoch - 1].stats().hops))
    for stage in stages:
        stage.close()
    device.server.close(0)


class RingUnderTest:
    """Processes that form a ring, with this one as their head."""

    def __init__(self, n_devices: int, tls: bool, load: bytes) -> None:
        self.name = f"{n_devices} processes{', mutual TLS' if tls else ''}"
        names = tuple("abc"[:n_devices])
        certificates = _certificates(names) if tls else dict.fromkeys(names)
        self._links = n_devices
        self._head = Device("a", names, certificates["a"], load)
        context = mp.get_context("spawn")
        self._pipes: list[Connection] = []
        self._processes = []
        for name in names[1:]:
            near, far = context.Pipe()
            device = Device(name, names, certificates[name], load)
            process = context.Process(target=be_worker, args=(device, far))
            process.start()
            self._pipes.append(near)
            self._processes.append(process)
        ports = {"a": self._head.serve()}
        ports |= {name: pipe.recv() for name, pipe in zip(names[1:], self._pipes, strict=True)}
        self._head.ports = ports
        self._results: SimpleQueue[Result] = SimpleQueue()
        self._tell(ports)
        self._rings = [self._ring(epoch, size) for epoch, size in enumerate(STATE_BYTES, start=1)]
        self._tell(len(STATE_BYTES))
        for ring in self._rings:
            ring.connect()
        self._batches = iter(range(10**9))

    def _ring(self, epoch: int, state_bytes: int) -> Ring:
        plan = self._head.plan(epoch)
        windows = self._head.windows(plan, state_bytes)
        return Ring(plan, windows, self._head.transport, self._results.put, lambda _: None)

    def _tell(self, what: object) -> list[object]:
        for pipe in self._pipes:
            pipe.send(what)
        return [pipe.recv() for pipe in self._pipes]

    def _compute_s(self, epoch: int) -> float:
        own = sum(hop.compute_s for hop in self._rings[epoch - 1].stats().hops)
        return own + sum(float(str(each)) for each in self._tell(epoch))

    def trips(self, epoch: int, count: int) -> list[float]:
        """Own time of a hop in microseconds, for each of `count` trips round the ring."""
        ring = self._rings[epoch - 1]
        batch = Batch(np.zeros(1, np.int32), np.zeros(1, np.int32), np.ones(1, np.bool_))
        tokens = np.zeros(1, np.int32)
        times, compute = [], self._compute_s(epoch)
        for _ in range(count):
            began = perf_counter()
            ring.submit(next(self._batches), (), batch, tokens)
            result = self._results.get()
            times.append(perf_counter() - began)
            assert result.error is None
        compute = (self._compute_s(epoch) - compute) / count
        return [1e6 * (seconds - compute) / self._links for seconds in times]

    def close(self) -> None:
        for ring in self._rings:
            ring.close()
        for pipe in self._pipes:
            pipe.send(None)
        for process in self._processes:
            process.join()
        self._head.server.close(0)


@dataclass(frozen=True)
class Row:
    """Own time of one hop in microseconds."""

    ring: str
    state_bytes: int
    median: float
    p95: float
    least_round: float  # the rounds' medians: how steady the machine was
    greatest_round: float


def _certificates(names: tuple[str, ...]) -> dict[str, Certificates | None]:
    ca_key, ca = authority.new_authority("0" * 16)
    pem, made = authority.certificate_pem, {}
    for name in names:
        key = authority.new_key()
        certificate = authority.issue(ca_key, ca, name, key.public_key())
        made[name] = Certificates(authority.key_pem(key), pem(certificate), pem(ca))
    return dict(made)


def _load(milliseconds: float) -> bytes:
    """As many bytes as take so long to hash here."""
    if milliseconds <= 0:
        return b""
    sample = bytes(2**20)
    timed = []
    for _ in range(9):
        began = perf_counter()
        hashlib.sha256(sample)
        timed.append(perf_counter() - began)
    return bytes(int(len(sample) * milliseconds / 1e3 / statistics.median(timed)))


def measure(rings: list[RingUnderTest], rounds: int, trips: int) -> list[Row]:
    """All rings and sizes in turn, `rounds` times."""
    cells: dict[tuple[RingUnderTest, int], list[list[float]]] = {
        (ring, epoch): [] for epoch in range(1, len(STATE_BYTES) + 1) for ring in rings
    }
    for ring, epoch in cells:
        ring.trips(epoch, WARM_UP)
    for number in range(rounds):
        print(f"round {number + 1} of {rounds}", file=sys.stderr)
        for (ring, epoch), taken in cells.items():
            taken.append(ring.trips(epoch, trips))
    return [_row(ring.name, STATE_BYTES[epoch - 1], taken) for (ring, epoch), taken in cells.items()]


def _row(name: str, state_bytes: int, taken: list[list[float]]) -> Row:
    every = sorted(value for each in taken for value in each)
    middles = [statistics.median(each) for each in taken]
    p95 = every[int(len(every) * 0.95)]
    return Row(name, state_bytes, statistics.median(every), p95, min(middles), max(middles))


def show(rows: list[Row], settings: dict[str, object], write: Callable[[str], object] = print) -> None:
    write("## One hop's own time\n")
    write("| ring | state | median | p95 | medians of the rounds |")
    write("| --- | --- | --- | --- | --- |")
    for row in rows:
        spread = f"{row.least_round:.0f} to {row.greatest_round:.0f} µs"
        size = f"{row.state_bytes // 1024} KB"
        write(f"| {row.ring} | {size} | {row.median:.0f} µs | {row.p95:.0f} µs | {spread} |")
    write("\n" + ", ".join(f"{key} {value}" for key, value in settings.items()))


def main() -> None:
    parser = arguments("What one hop of the ring costs apart from its window's compute.", rounds=5)
    parser.add_argument("--trips", type=int, default=200, help="round the ring per measurement (200)")
    parser.add_argument("--compute-ms", type=float, default=0.0, help="what each window computes (0)")
    options = parser.parse_args()
    load = _load(options.compute_ms)
    rings: list[RingUnderTest] = []
    try:
        rings += [RingUnderTest(n, tls, load) for n in (2, 3) for tls in (False, True)]
        rows = measure(rings, options.rounds, options.trips)
    finally:
        for ring in rings:
            ring.close()
    settings = {"rounds": options.rounds, "trips": options.trips, "compute ms": options.compute_ms}
    settings |= machine()
    body = json.dumps({"settings": settings, "rows": [asdict(row) for row in rows]}, indent=2)
    if options.json is not None and str(options.json) == "-":
        print(body)
        return
    show(rows, settings)
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(body + "\n")


if __name__ == "__main__":
    main()
