"""Every error that edged raises on purpose, as one tree.

EdgedError
├── SettingsError            a flag or variable that makes no sense
├── DocumentError            a msgpack document that cannot be read
├── DaemonError
│   ├── AlreadyRunningError  another daemon owns this home directory
│   ├── NotRunningError      no daemon answers in this home directory
│   └── PortTakenError
├── ModelError
│   ├── BrokenModelError     not a GGUF, or one that contradicts itself
│   ├── UnsupportedModelError
│   └── UnknownModelError    no model of that name
├── StoreError
│   ├── DamagedPartError     bytes that do not have the expected SHA-256
│   ├── MissingPartError     no reachable device has the part
│   └── DiskFullError
├── ClusterError
│   ├── JoinRefusedError
│   ├── UntrustedPeerError   the other end is not of this cluster
│   ├── VersionMismatchError
│   └── PeerLostError        a device no longer answers
├── PlanError                no assignment satisfies the wishes
├── RingError
│   ├── FrameError           a frame that cannot be read
│   ├── RingBrokenError      a link of the ring went away
│   ├── StalledError         a device answers, and its part of the work does not get on
│   └── MisconductError      a device of the ring sent what no device of a ring sends
├── WindowError              the native window refused or failed
└── RequestError
    ├── ContextOverflowError prompt and answer exceed the context
    ├── InvalidRequestError
    └── OverloadedError      too many requests wait already

`message` is one line for a person: what is wrong and what to do. `code` is stable: it travels over
the wire (see `edged.rpc.status`) and appears in HTTP error bodies.
"""

from __future__ import annotations


class EdgedError(Exception):
    """Base of all errors that reach a user; `str(error)` is one readable line."""

    code = "edged_error"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class SettingsError(EdgedError):
    code = "bad_settings"


class DocumentError(EdgedError):
    code = "bad_document"


class DaemonError(EdgedError):
    code = "daemon_error"


class AlreadyRunningError(DaemonError):
    code = "already_running"


class NotRunningError(DaemonError):
    code = "not_running"


class PortTakenError(DaemonError):
    code = "port_taken"


class ModelError(EdgedError):
    code = "model_error"


class BrokenModelError(ModelError):
    code = "broken_model"


class UnsupportedModelError(ModelError):
    code = "unsupported_model"


class UnknownModelError(ModelError):
    code = "model_not_found"


class StoreError(EdgedError):
    code = "store_error"


class DamagedPartError(StoreError):
    code = "damaged_part"


class MissingPartError(StoreError):
    code = "missing_part"


class DiskFullError(StoreError):
    code = "disk_full"


class ClusterError(EdgedError):
    code = "cluster_error"


class JoinRefusedError(ClusterError):
    code = "join_refused"


class UntrustedPeerError(ClusterError):
    code = "untrusted_peer"


class VersionMismatchError(ClusterError):
    code = "version_mismatch"


class PeerLostError(ClusterError):
    code = "peer_lost"


class PlanError(EdgedError):
    code = "no_plan"


class RingError(EdgedError):
    code = "ring_error"


class FrameError(RingError):
    code = "bad_frame"


class RingBrokenError(RingError):
    code = "ring_broken"


class StalledError(RingError):
    code = "stalled"


class MisconductError(RingError):
    """`device` is the id of the offender, where it is known."""

    code = "misconduct"

    def __init__(self, message: str, device: str = "") -> None:
        super().__init__(message)
        self.device = device


class WindowError(EdgedError):
    code = "window_error"


class RequestError(EdgedError):
    code = "request_error"


class ContextOverflowError(RequestError):
    code = "context_length_exceeded"


class InvalidRequestError(RequestError):
    code = "invalid_request"


class OverloadedError(RequestError):
    code = "overloaded"


def shown(text: str, most: int = 80) -> str:
    """What a stranger wrote as a message may quote it: on one line, and not at any length."""
    line = "".join(character if character.isprintable() else "\ufffd" for character in text[: most + 1])
    return line if len(line) <= most else f"{line[:most]}..."


def _tree(root: type[EdgedError]) -> dict[str, type[EdgedError]]:
    found = {root.code: root}
    for child in root.__subclasses__():
        found.update(_tree(child))
    return found


BY_CODE: dict[str, type[EdgedError]] = _tree(EdgedError)
"""Error class per code, to rebuild an error that arrived over the wire."""
