"""One measured case of a model that may be larger than memory: a line of JSON, so that runs add up."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Case:
    """What is varied. Sizes in bytes."""

    system: str  # "edged" or "llama.cpp"
    model: str
    model_bytes: int
    nodes: int
    fits: int  # percent of the model that all nodes' limits hold together
    limit: int  # of each node's cgroup
    link: str  # "" for none
    delay_ms: float
    disk_rate: str  # per node; "" for the disk's own
    rounds: int | None  # None: the plan chose
    residency: bool
    threads: int


@dataclass(frozen=True, slots=True)
class Measurement:
    """What came of it; per token means per decoded token in steady state."""

    case: Case
    token_s: tuple[float, ...] = ()
    read_per_token: float = 0.0  # bytes from disk, all nodes, as the kernel counts them
    node_read_per_token: tuple[float, ...] = ()
    node_least_per_token: tuple[float, ...] = ()  # weights of its share less what its budget can hold
    largest_tensor: int = 0  # bytes; has to be in memory while it is computed with
    faults_per_token: float = 0.0  # page faults that waited for the disk
    node_peak: tuple[int, ...] = ()  # of the cgroup, page cache included
    node_anonymous: tuple[int, ...] = ()
    node_locked: tuple[int, ...] = ()
    oom_kills: int = 0
    swapped: int = 0
    plan: str = ""
    tokens: tuple[int, ...] = ()  # what was generated
    counters: dict[str, float] = field(default_factory=dict)  # the daemons' own; totals over one answer
    problem: str = ""  # why there are no figures

    @property
    def tpot_s(self) -> float:
        """Median seconds per token; infinite where it did not run."""
        return statistics.median(self.token_s) if self.token_s else float("inf")

    @property
    def least_per_token(self) -> float:
        return sum(self.node_least_per_token)

    @property
    def worst_excess(self) -> float:
        """Of the nodes, the greatest ratio of bytes read to the least possible; 0 where nothing must be."""
        return self._excess(0)

    @property
    def worst_excess_in_use(self) -> float:
        """The same if the budget also has to hold the tensor that is just being computed with."""
        return self._excess(self.largest_tensor)

    def _excess(self, in_use: int) -> float:
        pairs = zip(self.node_read_per_token, self.node_least_per_token, strict=True)
        return max((read / (least + in_use) for read, least in pairs if least > 0), default=0.0)


def append(path: Path, measurement: Measurement) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(asdict(measurement)) + "\n")


def load(path: Path) -> list[Measurement]:
    """Every line of `path`, in order."""
    return [_unpacked(json.loads(line)) for line in path.read_text().splitlines() if line.strip()]


def _unpacked(body: dict[str, object]) -> Measurement:
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in body.items()}
    case = values.pop("case")
    assert isinstance(case, dict)
    return Measurement(case=Case(**case), **values)  # type: ignore[arg-type]


def latest(measurements: Iterable[Measurement]) -> list[Measurement]:
    """Of several measurements of one case the last."""
    return list({measurement.case: measurement for measurement in measurements}.values())
