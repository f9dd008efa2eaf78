"""Profiles as TOML files: devices that people own, clusters of them, models by their shape.

They are for tests, for simulation and for "what if I bought...". Those that come with edged go by name.
Units in the files are those on data sheets (GB, GB/s, Gflop/s, Mbit/s, ms); in profiles bytes and seconds.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

import edged
from edged.errors import SettingsError, shown
from edged.planning.model_file import ModelFile
from edged.planning.model_profile import ModelProfile
from edged.planning.profile import (
    ANY_TYPE,
    ClusterProfile,
    DeviceProfile,
    LinkProfile,
    ProcessorProfile,
    TypeSpeed,
)

GIB = 2**30
T = TypeVar("T")


def shipped(kind: str) -> Path:
    """The folder of profiles that come with edged: in the package if installed, beside it in a checkout."""
    package = Path(edged.__file__).parent
    inside = package / "profiles" / kind
    return inside if inside.is_dir() else package.parent / "profiles" / kind


def names(kind: str) -> tuple[str, ...]:
    """Names of the shipped profiles of a kind: devices, clusters, models."""
    return tuple(sorted(path.stem for path in shipped(kind).glob("*.toml")))


def find(kind: str, name: str) -> Path | None:
    """The file that `name` means: a path, or the name of a shipped profile; None where there is neither."""
    path = Path(name).expanduser()
    if path.suffix == ".toml" and path.is_file():
        return path
    return next((one for one in shipped(kind).glob("*.toml") if one.stem == name), None)


def read_model(path: Path) -> ModelProfile:
    """Raises SettingsError that names file and field."""
    return _checked(path, lambda table: ModelFile.model_validate(table).profile(path.stem))


def read_device(path: Path) -> DeviceProfile:
    """One device; its id is the file's name. Raises SettingsError that names file and field."""
    return _checked(path, lambda table: _device(path.stem, table))


def read_cluster(path: Path) -> ClusterProfile:
    """Devices, each from a file of its own with changes or written out, and links. Raises SettingsError.

    A link holds for both directions, unless there is another one for the way back.
    """
    return _checked(path, lambda table: _cluster(path, table))


def _checked(path: Path, make: Callable[[Mapping[str, object]], T]) -> T:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error.strerror or error}") from None
    except RecursionError:  # of the parser: brackets within brackets
        raise SettingsError(f"{path} is nested too deeply to be a profile") from None
    except ValueError as error:  # TOMLDecodeError, what is no UTF-8, and a number of thousands of digits
        raise SettingsError(f"{path} is not TOML: {shown(str(error), 200)}") from None
    try:
        return make(table)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(step) for step in first["loc"])
        what = first["msg"].removeprefix("Value error, ")
        raise SettingsError(f"{path}: {shown(where + ': ' if where else '')}{shown(what, 200)}") from None
    except (_FieldError, ValueError) as error:
        raise SettingsError(f"{path}: {shown(str(error), 1000)}") from None


# Of each figure in its unit: far less and far more than any device or network has, yet so that no sum or
# quotient of such figures is infinite. Zero is allowed where it has a meaning, such as a disk not measured.
PLAUSIBLE: dict[str, tuple[float, float]] = {
    "memory_gib": (0, 1e6),
    "disk_free_gb": (0, 1e9),
    "threads": (1, 4096),
    "disk_sequential_mb_s": (0.001, 1e6),
    "disk_random_mb_s": (0.001, 1e6),
    "decode_gb_s": (0.001, 1e6),
    "prefill_gflops": (0.001, 1e9),
    "memory_bandwidth_gb_s": (0.001, 1e6),
    "run_ms": (0, 60_000),
    "latency_ms": (0, 60_000),
    "mbit_s": (0.001, 1e7),
}


class _FieldError(Exception):
    pass


class _Table:
    """One table of a file; what nobody asked for is an error."""

    def __init__(self, table: object, where: str) -> None:
        if not isinstance(table, Mapping):
            raise _FieldError(f"{where or 'the file'} is not a table")
        self._table, self._where, self._asked = table, where, set[str]()

    def number(self, key: str, default: float | None = None, *, above_zero: bool = False) -> float:
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise _FieldError(f"{self._at(key)} is not a number")
        if value < 0 or (above_zero and value == 0):
            need = "more than" if above_zero else "at least"
            raise _FieldError(f"{self._at(key)} is {shown(str(value), 30)}, but must be {need} 0")
        least, most = PLAUSIBLE[key]
        if value != 0 and not least <= value <= most:
            bounds = f"believable is {least:g} to {most:g}"
            raise _FieldError(
                f"{self._at(key)} is {shown(str(value), 30)}, which is out of all bounds: {bounds}"
            )
        return float(value)

    def text(self, key: str, default: str | None = None) -> str:
        value = self._get(key, default)
        if not isinstance(value, str):
            raise _FieldError(f"{self._at(key)} is not a text")
        return value

    def flag(self, key: str) -> bool:
        value = self._get(key, False)
        if not isinstance(value, bool):
            raise _FieldError(f"{self._at(key)} is neither true nor false")
        return value

    def tables(self, key: str) -> list[_Table]:
        value = self._get(key, [])
        if not isinstance(value, list):
            raise _FieldError(f"{self._at(key)} is not a list of tables")
        return [_Table(one, f"{self._at(key)}[{i}]") for i, one in enumerate(value)]

    def table(self, key: str) -> _Table:
        return _Table(self._get(key, {}), self._at(key))

    @property
    def keys(self) -> list[str]:
        return list(self._table)

    def pair(self, key: str) -> tuple[str, str]:
        value = self._get(key, None)
        if not isinstance(value, list) or len(value) != 2 or not all(isinstance(one, str) for one in value):
            raise _FieldError(f"{self._at(key)} is not two names")
        return value[0], value[1]

    def done(self) -> None:
        if strange := sorted(set(self._table) - self._asked):
            raise _FieldError(f"{self._at(strange[0])} is not known")

    def raw(self, key: str) -> object:
        return self._table[key]

    def has(self, key: str) -> bool:
        return key in self._table

    def _get(self, key: str, default: object) -> object:
        self._asked.add(key)
        value = self._table.get(key, default)
        if value is None:
            raise _FieldError(f"{self._at(key)} is missing")
        return value

    def _at(self, key: str) -> str:
        return f"{self._where}.{key}" if self._where else key


def _device(device: str, raw: Mapping[str, object], where: str = "") -> DeviceProfile:
    table = _Table(raw, where)
    processors = tuple(_processor(one) for one in table.tables("processor"))
    if not processors:
        raise _FieldError(f"{where + ': ' if where else ''}a device has a processor at least")
    slowest = min(processors[0].speeds, key=lambda speed: speed.decode)
    profile = DeviceProfile.model_validate(
        {
            "device": device,
            "name": table.text("name", device),
            "memory_budget": int(table.number("memory_gib") * GIB),
            "disk_free": int(table.number("disk_free_gb") * 1e9),
            "threads": int(table.number("threads", above_zero=True)),
            "bandwidth": slowest.decode,
            "flops": slowest.prefill,
            "system": table.text("system", ""),
            "os": table.text("os"),
            "processors": processors,
            "disk_sequential": table.number("disk_sequential_mb_s", 0.0) * 1e6,
            "disk_random": table.number("disk_random_mb_s", 0.0) * 1e6,
        }
    )
    table.done()
    return profile


def _processor(table: _Table) -> ProcessorProfile:
    speeds = table.table("speeds")
    found = []
    for key in speeds.keys:
        speed = speeds.table(key)
        found.append(
            TypeSpeed(
                type=ANY_TYPE if key == "any" else key,
                decode=speed.number("decode_gb_s", above_zero=True) * 1e9,
                prefill=speed.number("prefill_gflops", above_zero=True) * 1e9,
            )
        )
        speed.done()
    processor = ProcessorProfile.model_validate(
        {
            "name": table.text("name"),
            "kind": table.text("kind"),
            "description": table.text("description", ""),
            "speeds": tuple(found),
            "memory_bandwidth": table.number("memory_bandwidth_gb_s", above_zero=True) * 1e9,
            "memory_budget": int(table.number("memory_gib", 0.0) * GIB),
            "shares_memory": table.flag("shares_memory"),
            "run_s": table.number("run_ms", 0.0) / 1e3,
        }
    )
    table.done()
    return processor


def _cluster(path: Path, raw: Mapping[str, object]) -> ClusterProfile:
    table = _Table(raw, "")
    devices = tuple(_member(path, one) for one in table.tables("device"))
    if not devices:
        raise _FieldError("a cluster has a device at least")
    ids = {device.device for device in devices}
    links: dict[tuple[str, str], LinkProfile] = {}
    for link in table.tables("link"):
        ends = link.pair("between")
        if strange := [end for end in ends if end not in ids]:
            raise _FieldError(f"a link ends at {strange[0]}, which is no device of the cluster")
        if ends[0] == ends[1]:
            raise _FieldError(f"a link goes from {ends[0]} to {ends[0]} itself")
        if ends in links:
            raise _FieldError(f"the link from {ends[0]} to {ends[1]} is given twice")
        links[ends] = LinkProfile(
            source=ends[0],
            target=ends[1],
            latency=link.number("latency_ms") / 1e3,
            bandwidth=link.number("mbit_s", above_zero=True) * 1e6 / 8,
        )
        link.done()
    network = table.table("network")
    changes: dict[str, float] = {}
    if network.has("latency_ms"):
        changes["unmeasured_latency"] = network.number("latency_ms") / 1e3
    if network.has("mbit_s"):
        changes["unmeasured_bandwidth"] = network.number("mbit_s", above_zero=True) * 1e6 / 8
    network.done()
    cluster = ClusterProfile.model_validate(
        {
            "name": table.text("name", path.stem),
            "head": table.text("head", devices[0].device),
            "devices": devices,
            "links": tuple(links.values()),
            **changes,
        }
    )
    table.done()
    return cluster


def _member(path: Path, table: _Table) -> DeviceProfile:
    """`profile` names a device's file, shipped or beside the cluster's; other fields replace the file's."""
    device = table.text("id")
    own = {key: table.raw(key) for key in table.keys if key not in ("id", "profile")}
    if not table.has("profile"):
        return _device(device, own, device)
    wanted = table.text("profile")
    beside = path.parent / f"{wanted}.toml"
    file = beside if beside.is_file() else find("devices", wanted)
    if file is None:
        raise _FieldError(f"{device}: there is no profile {wanted}; known: {', '.join(names('devices'))}")
    base = _checked(file, dict)
    return _device(device, {**base, "name": device, **own}, device)
