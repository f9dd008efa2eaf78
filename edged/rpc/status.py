"""EdgedErrors over gRPC: the class travels as `code` in the trailing metadata, the line as the details."""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, ParamSpec, TypeVar

import grpc

from edged import PROTOCOL_VERSION, __version__
from edged.errors import (
    BY_CODE,
    DocumentError,
    EdgedError,
    OverloadedError,
    PeerLostError,
    RequestError,
    SettingsError,
    UnknownModelError,
    UntrustedPeerError,
    VersionMismatchError,
)

log = logging.getLogger(__name__)

CODE_KEY = "edged-code"
VERSION_KEY = "edged-protocol"
RELEASE_KEY = "edged-version"
VERSION_METADATA = ((VERSION_KEY, str(PROTOCOL_VERSION)), (RELEASE_KEY, __version__))
MAX_VERSION = 40  # characters of a stranger's version that are shown
MAX_DETAILS = 2000  # characters; metadata is limited to 8 KiB as a whole

_STATUS: dict[type[EdgedError], grpc.StatusCode] = {
    DocumentError: grpc.StatusCode.INVALID_ARGUMENT,
    SettingsError: grpc.StatusCode.INVALID_ARGUMENT,
    RequestError: grpc.StatusCode.INVALID_ARGUMENT,
    OverloadedError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    UnknownModelError: grpc.StatusCode.NOT_FOUND,
    UntrustedPeerError: grpc.StatusCode.PERMISSION_DENIED,
}
"""Status per class or nearest parent, for tools other than edged; FAILED_PRECONDITION for all others."""

_FOREIGN: dict[grpc.StatusCode, tuple[type[EdgedError], str]] = {
    grpc.StatusCode.UNAVAILABLE: (PeerLostError, "no longer answers"),
    grpc.StatusCode.DEADLINE_EXCEEDED: (PeerLostError, "did not answer in time"),
    grpc.StatusCode.CANCELLED: (PeerLostError, "was not asked to the end: the call was broken off"),
    grpc.StatusCode.UNAUTHENTICATED: (UntrustedPeerError, "refused this device: {details}"),
    grpc.StatusCode.PERMISSION_DENIED: (UntrustedPeerError, "refused this device: {details}"),
    grpc.StatusCode.UNIMPLEMENTED: (
        VersionMismatchError,
        f"does not know this request of edged {__version__} (protocol {PROTOCOL_VERSION}): "
        "install the same version on both",
    ),
}
"""Statuses that gRPC itself gives, and what they mean for a person."""

P = ParamSpec("P")
R = TypeVar("R")


def guard(method: Callable[P, R]) -> Callable[P, R]:
    """Decorates a servicer's method, unary or streaming, so that only EdgedErrors and clear lines get out.

    An EdgedError reaches the caller as itself (see `unwrap`). Anything else is logged with its traceback,
    and the caller gets one line that says where to look.
    """

    @functools.wraps(method)
    def unary(*args: Any, **kwargs: Any) -> Any:
        context = _context(args)
        try:
            answer: Any = method(*args, **kwargs)
        except Exception as error:  # noqa: BLE001 - _fail always raises
            _fail(context, error, method.__name__)
        return _guarded(answer, context, method.__name__) if isinstance(answer, Iterator) else answer

    @functools.wraps(method)
    def streaming(*args: Any, **kwargs: Any) -> Any:
        yield from _guarded(method(*args, **kwargs), _context(args), method.__name__)  # type: ignore[arg-type]

    return streaming if inspect.isgeneratorfunction(method) else unary


def abort(context: grpc.ServicerContext, error: EdgedError) -> NoReturn:
    """Ends the call with `error` as its status."""
    context.set_trailing_metadata((*VERSION_METADATA, (CODE_KEY, error.code)))
    context.abort(_status(error), one_line(error.message))
    raise AssertionError  # abort raises


def unwrap(error: grpc.RpcError, device: str) -> EdgedError:
    """The EdgedError that a failed call to `device` (its name or id, for the message) stands for.

    UNAVAILABLE becomes PeerLostError; where the reason is TLS, `edged.rpc.channel.diagnose` can say more.
    """
    metadata = {str(key): value for key, value in (_ask(error, "trailing_metadata") or ())}
    details = one_line(str(_ask(error, "details") or ""))
    theirs = metadata.get(CODE_KEY)
    if theirs in BY_CODE:
        return BY_CODE[str(theirs)](details)
    if "CERTIFICATE_VERIFY_FAILED" in details:
        return UntrustedPeerError(f"{device} has no certificate of this cluster: has it been set up anew?")
    status = _ask(error, "code")
    kind, words = _FOREIGN.get(status, (EdgedError, "failed: {details}"))
    return kind(f"{device} {words.format(details=details or status)}")


def one_line(text: str) -> str:
    """Text that came from elsewhere, fit for a terminal and for a status."""
    return "".join(char if char.isprintable() else " " for char in text[:MAX_DETAILS]).strip()


def _context(args: tuple[Any, ...]) -> grpc.ServicerContext:
    """Servicer methods are called as (self, request, context)."""
    return args[-1]


def _guarded(answers: Iterator[Any], context: grpc.ServicerContext, name: str) -> Iterator[Any]:
    try:
        yield from answers
    except Exception as error:  # noqa: BLE001 - _fail always raises
        _fail(context, error, name)


def _fail(context: grpc.ServicerContext, error: Exception, name: str) -> NoReturn:
    if context.code() is not None or not context.is_active():
        raise error  # aborted already, or the caller went away: nobody is left to be told
    if isinstance(error, EdgedError):
        abort(context, error)
    log.error("%s failed", name, exc_info=error)
    line = f"{name} failed for a reason that edged did not foresee: the log of that device has the details"
    context.set_trailing_metadata((*VERSION_METADATA, (CODE_KEY, EdgedError.code)))
    context.abort(grpc.StatusCode.INTERNAL, line)
    raise AssertionError


def _status(error: EdgedError) -> grpc.StatusCode:
    for kind in type(error).__mro__:
        if kind in _STATUS:
            return _STATUS[kind]
    return grpc.StatusCode.FAILED_PRECONDITION


def _ask(error: grpc.RpcError, question: str) -> Any:
    """grpc raises RpcErrors that are also calls; a bare one knows nothing."""
    method = getattr(error, question, None)
    return method() if method is not None else None
