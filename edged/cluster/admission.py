"""Admitting devices, on the founder: the only place that signs certificates for others."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable

from edged.cluster import authority
from edged.cluster.identity import Identity, checked_name
from edged.cluster.join import JoinAnswer, JoinRequest
from edged.cluster.token import Token, TokenBook, WrongSecretError
from edged.documents import Document
from edged.errors import ClusterError, DocumentError, JoinRefusedError, SettingsError
from edged.private_file import write_private
from edged.rpc.bounded_listener import source

log = logging.getLogger(__name__)

MAX_WRONG = 5  # guesses per address and window; a secret has 160 bits, so this is for quiet, not for safety
WINDOW_S = 60.0
MAX_ADDRESSES = 1000


class AdmittedDevice(Document):
    device: str  # device id
    name: str
    key_sha256: str


class AdmittedDevices(Document):
    devices: tuple[AdmittedDevice, ...] = ()


class Admission:
    """Tokens out, certificates in return. Safe to use from several threads."""

    def __init__(
        self,
        identity: Identity,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Raises ClusterError if `identity` is not the founder's, or its files are damaged."""
        if identity.ca_key is None:
            raise ClusterError(
                f"only the founder {identity.founder} can admit devices: run `edged token` there"
            )
        self._ca_key, self._ca, self._own = identity.ca_key, identity.ca, identity.device
        folder = identity.home / "identity"
        self._tokens = TokenBook(folder / "tokens", identity.fingerprint, clock)
        self._path = folder / "admitted"
        self._lock = threading.Lock()
        self._guesses = _Guesses(monotonic)
        try:
            self._admitted = AdmittedDevices.unpack(self._path.read_bytes()).devices
        except FileNotFoundError:
            self._admitted = ()
        except (DocumentError, OSError):
            raise ClusterError(
                f"{self._path} is damaged: remove it (devices already admitted stay members)"
            ) from None

    def new_token(self, lifetime_s: float | None = None) -> Token:
        """A join token, valid once, for `lifetime_s` seconds (a day if not given)."""
        return self._tokens.new() if lifetime_s is None else self._tokens.new(lifetime_s)

    def admit(self, request: JoinRequest, address: str) -> JoinAnswer:
        """A certificate for the device that asks from `address`. Raises JoinRefusedError, one line why."""
        address = source(address)
        self._guesses.check(address)
        device, key = authority.read_request(request.request.encode())
        try:
            secret = bytes.fromhex(request.secret)
        except ValueError:
            secret = b""
        try:
            name = checked_name(request.name)
        except SettingsError as error:
            raise JoinRefusedError(error.message) from None
        entry = AdmittedDevice(device=device, name=name, key_sha256=authority.key_hash(key))
        try:
            with self._lock, self._tokens.spending(secret, device):
                self._record(entry)
                certificate = authority.issue(self._ca_key, self._ca, device, key)
        except WrongSecretError:
            self._guesses.count(address)
            raise
        log.info("%s (%s) joined the cluster from %s", entry.name, device, address)
        return JoinAnswer(certificate=authority.certificate_pem(certificate).decode())

    def _record(self, entry: AdmittedDevice) -> None:
        """Called only for a good token, so that a guesser learns of no device id."""
        known = next((known for known in self._admitted if known.device == entry.device), None)
        if entry.device == self._own or (known is not None and known.key_sha256 != entry.key_sha256):
            raise JoinRefusedError(
                f"a device with the id {entry.device} belongs to the cluster already, with another key: "
                "was the home directory copied? Remove `identity` from the copy and join again"
            )
        others = tuple(other for other in self._admitted if other.device != entry.device)
        write_private(self._path, AdmittedDevices(devices=(*others, entry)).pack())
        self._admitted = (*others, entry)


class _Guesses:
    """Wrong secrets per address. A limit over all addresses would let anybody keep everybody out."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._times: OrderedDict[str, deque[float]] = OrderedDict()

    def check(self, address: str) -> None:
        with self._lock:
            times = self._times.get(address)
            if times is None:
                return
            while times and times[0] <= self._monotonic() - WINDOW_S:
                times.popleft()
            if len(times) >= MAX_WRONG:
                raise JoinRefusedError("too many wrong tokens from this device: wait a minute and try again")

    def count(self, address: str) -> None:
        with self._lock:
            times = self._times.setdefault(address, deque(maxlen=MAX_WRONG))
            times.append(self._monotonic())
            self._times.move_to_end(address)
            while len(self._times) > MAX_ADDRESSES:
                self._times.popitem(last=False)
