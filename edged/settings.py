"""Settings: one frozen object, read once from flags and EDGED_* variables; a flag wins over its variable."""

from __future__ import annotations

import ipaddress
import os
import re
import secrets
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from edged.errors import SettingsError
from edged.private_file import write_private

if TYPE_CHECKING:
    from edged.planning.plan import FlashAttention, KvType, Objective, WireType

DEFAULT_PORT = 7411  # ring, store and cluster over mutual TLS; the port after it is for joining
DEFAULT_HTTP_PORT = 7480
DEFAULT_PARALLEL = 8  # sequences held at once
DEFAULT_CTX_LIMIT = 4096  # positions per sequence, unless the model has fewer or more are asked for
MAX_PARALLEL = 64
MAX_ROUNDS = 32
MAX_SOCKET_PATH = 100  # bytes; the kernel allows 107, and gRPC adds a little
LOG_LEVELS = ("debug", "info", "warning", "error")
RESIDENCY = ("auto", "off")


@dataclass(frozen=True, slots=True)
class HostPort:
    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:  # a name
            return self.host == "localhost"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything a user can choose. Made by `read_settings`; nothing else reads the environment."""

    home: Path
    name: str
    port: int = DEFAULT_PORT
    http: HostPort | None = HostPort("127.0.0.1", DEFAULT_HTTP_PORT)  # None: no HTTP
    join: str | None = field(default=None, repr=False)  # token of the cluster to join
    peer: HostPort | None = None  # a device of the cluster, where multicast is blocked
    memory: int | None = None  # bytes; None: what the machine has to spare
    model: str | None = None
    api_key: str | None = field(default=None, repr=False)  # None: see `ensure_api_key`
    parallel: int = DEFAULT_PARALLEL
    ctx: int | None = None  # None: the model's own, at most DEFAULT_CTX_LIMIT
    threads: int = 1
    kv_type: KvType = "f16"
    flash_attention: FlashAttention = "auto"
    wire_type: WireType = "f32"
    objective: Objective = "throughput"
    rounds: int | None = None  # how often the ring comes by each device; None: the planner chooses
    residency: str = "auto"  # of layers where not all fit; one of RESIDENCY
    log_level: str = "info"

    @property
    def join_port(self) -> int:
        return self.port + 1

    @property
    def socket_path(self) -> Path:
        return daemon_socket(self.home)

    @property
    def api_key_path(self) -> Path:
        return self.home / "api-key"

    def ctx_for(self, n_ctx_train: int) -> int:
        """Positions per sequence to wish for; planning gives no more than the model was trained on."""
        return self.ctx if self.ctx is not None else min(n_ctx_train, DEFAULT_CTX_LIMIT)


@dataclass(frozen=True, slots=True)
class Setting:
    """How one field of Settings is written by a user. `parse` raises ValueError with what was expected."""

    field: str
    metavar: str
    parse: Callable[[str], object]
    help: str

    @property
    def variable(self) -> str:
        return f"EDGED_{self.field.upper()}"


def daemon_socket(home: Path) -> Path:
    """Where the daemon of this home directory listens for its own command line."""
    return home / "run" / "daemon.sock"


def parse_home(text: str) -> Path:
    try:
        home = Path(text).expanduser().absolute()
    except RuntimeError:  # `~name` of nobody
        raise ValueError("a directory of a user that exists") from None
    if len(os.fsencode(daemon_socket(home))) > MAX_SOCKET_PATH:
        raise ValueError(
            "a shorter path: the daemon's socket in it would have too long a name for the system"
        )
    if home.exists() and not home.is_dir():
        raise ValueError("a directory")
    return home


def parse_name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", text):
        raise ValueError("up to 63 letters, digits, dots, dashes and underscores, a letter or digit first")
    return text


def parse_size(text: str) -> int:
    """Bytes: `4G` and `4GiB` are 4 x 2^30, `4GB` is 4 x 10^9."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:([KMGT])(iB|B)?|B)?", text.strip(), re.IGNORECASE)
    if match is None:
        raise ValueError("a size such as 4G, 512MiB or 1.5GB")
    number, unit, suffix = match.groups()
    base = 1000 if suffix is not None and suffix.upper() == "B" else 1024
    power = " KMGT".index(unit.upper()) if unit else 0
    size = int(float(number) * base**power)
    if size <= 0:
        raise ValueError("a size above zero")
    return size


def parse_host_port(text: str, lowest: int = 1) -> HostPort:
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.%\w]+)\]|([^\s:\[\]/]+)):(\d{1,5})", text.strip())
    if match is None or not lowest <= int(match[3]) <= 65535:
        raise ValueError("HOST:PORT, such as 192.168.1.20:7411 or [::1]:7411")
    return HostPort(match[1] or match[2], int(match[3]))


NO_HTTP = HostPort("", 0)
"""What `off` is while settings are read, since None there means that nothing was said."""


def parse_http(text: str) -> HostPort:
    """Port 0 takes any free port; `off` is NO_HTTP."""
    return NO_HTTP if text.strip().lower() == "off" else parse_host_port(text, lowest=0)


def parse_key(text: str) -> str:
    if not re.fullmatch(r"[!-~]{8,200}", text):
        raise ValueError("8 to 200 printable characters without spaces")
    return text


def parse_text(text: str) -> str:
    if not text.strip() or not text.isprintable():
        raise ValueError("one line of text")
    return text.strip()


def _whole(lowest: int, highest: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not re.fullmatch(r"\d{1,9}", text.strip()) or not lowest <= int(text) <= highest:
            raise ValueError(f"a whole number from {lowest} to {highest}")
        return int(text)

    return parse


def _one_of(*choices: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text.strip().lower() not in choices:
            raise ValueError("one of " + ", ".join(choices))
        return text.strip().lower()

    return parse


def _plan_choice(kind: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        # Imported here: `edged --help` should not wait for pydantic.
        from edged.planning import plan  # noqa: PLC0415

        return _one_of(*get_args(getattr(plan, kind)))(text)

    return parse


_TABLE = (
    Setting("home", "DIR", parse_home, "Where edged keeps its models, keys and socket."),
    Setting("name", "NAME", parse_name, "What this device is called (default: the host's name)."),
    Setting(
        "port",
        "PORT",
        _whole(1, 65534),
        f"Port for other devices, and the next one for joining ({DEFAULT_PORT}).",
    ),
    Setting(
        "http", "HOST:PORT", parse_http, f"Where HTTP is served (127.0.0.1:{DEFAULT_HTTP_PORT}), or off."
    ),
    Setting("join", "TOKEN", parse_text, "Join the cluster that gave this token."),
    Setting("peer", "HOST:PORT", parse_host_port, "A device of the cluster, where multicast is blocked."),
    Setting("memory", "SIZE", parse_size, "The most memory to use, such as 4G (default: what is free)."),
    Setting("model", "MODEL", parse_text, "The model to load."),
    Setting(
        "api_key",
        "KEY",
        parse_key,
        "The key that HTTP demands beyond loopback (default: one in HOME/api-key).",
    ),
    Setting("parallel", "N", _whole(1, MAX_PARALLEL), f"Requests answered at once ({DEFAULT_PARALLEL})."),
    Setting(
        "ctx", "N", _whole(16, 2**24), f"Tokens per request (the model's own, at most {DEFAULT_CTX_LIMIT})."
    ),
    Setting("threads", "N", _whole(1, 1024), "Threads to compute with (default: one per core)."),
    Setting("kv_type", "TYPE", _plan_choice("KvType"), "How the KV cache is kept: f16, q8_0, ... (f16)."),
    Setting(
        "flash_attention", "MODE", _plan_choice("FlashAttention"), "Flash attention: auto, on or off (auto)."
    ),
    Setting(
        "wire_type", "TYPE", _plan_choice("WireType"), "How activations travel: f32 (exact), f16 or q8 (f32)."
    ),
    Setting(
        "objective",
        "WHAT",
        _plan_choice("Objective"),
        "What the ring is for: throughput (prompts, many answers) or latency (one answer) (throughput).",
    ),
    Setting(
        "rounds",
        "N",
        _whole(1, MAX_ROUNDS),
        "How often the ring comes by each device (default: the planner chooses).",
    ),
    Setting(
        "residency",
        "MODE",
        _one_of(*RESIDENCY),
        "Where a device's layers do not all fit: keep in memory what does (auto), or nothing (off).",
    ),
    Setting(
        "log_level", "LEVEL", _one_of(*LOG_LEVELS), "How much to say: debug, info, warning or error (info)."
    ),
)
SETTINGS: dict[str, Setting] = {setting.field: setting for setting in _TABLE}
_BY_VARIABLE = {setting.variable: setting for setting in _TABLE}


def read_settings(environ: Mapping[str, str], flags: Mapping[str, object] | None = None) -> Settings:
    """Settings from parsed flags (None: not given), then variables, then defaults.

    Raises SettingsError that names the variable if one is malformed or unknown. An empty variable is unset.
    """
    values: dict[str, Any] = {}
    for variable, text in environ.items():
        if not variable.startswith("EDGED_"):
            continue
        setting = _BY_VARIABLE.get(variable)
        if setting is None:
            raise SettingsError(f"{variable} is not a variable that edged knows; {_nearest(variable)}")
        if text:
            values[setting.field] = _parsed(setting, text)
    for name, value in (flags or {}).items():
        if name not in SETTINGS:
            raise SettingsError(f"edged has no setting '{name}'")
        if value is not None:
            values[name] = value
    if values.get("http") == NO_HTTP:
        values["http"] = None
    values.setdefault("home", parse_home(default_home(environ)))
    values.setdefault("name", _host_name())
    values.setdefault("threads", _cores())
    return Settings(**values)


def default_home(environ: Mapping[str, str]) -> str:
    data = environ.get("XDG_DATA_HOME", "")
    return f"{data}/edged" if data.startswith("/") else "~/.edged"


def ensure_api_key(settings: Settings) -> str:
    """The key for HTTP beyond loopback: the given one, or that of HOME/api-key, made on first use."""
    if settings.api_key is not None:
        return settings.api_key
    path = settings.api_key_path
    if not path.exists():
        write_private(path, f"edged-{secrets.token_urlsafe(24)}\n".encode())
    if path.stat().st_mode & 0o077:
        raise SettingsError(f"{path} can be read by others; make a new key, or run: chmod 600 {path}")
    try:
        return parse_key(path.read_text().strip())
    except ValueError as error:
        raise SettingsError(f"{path} does not hold a key; expected {error}") from None


def _parsed(setting: Setting, text: str) -> object:
    shown = "the value" if setting.field in ("api_key", "join") else repr(text)
    try:
        return setting.parse(text)
    except ValueError as error:
        raise SettingsError(f"{setting.variable}: {shown} will not do; expected {error}") from None


def _nearest(variable: str) -> str:
    import difflib  # noqa: PLC0415 - only on the way to an error

    close = difflib.get_close_matches(variable, _BY_VARIABLE, n=1, cutoff=0.8)
    return f"did you mean {close[0]}?" if close else "unset it"


def _host_name() -> str:
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", socket.gethostname().split(".")[0]).strip("-._")[:63]
    return name or "device"


def _cores() -> int:
    """Physical cores, or fewer where this process may not use them all."""
    import psutil  # noqa: PLC0415 - `edged --help` does without

    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(allowed, psutil.cpu_count(logical=False) or allowed))
