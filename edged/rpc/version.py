"""Both ends name their protocol version on every call; a server refuses any other than its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc

from edged import PROTOCOL_VERSION, __version__
from edged.errors import VersionMismatchError
from edged.rpc.status import MAX_VERSION, RELEASE_KEY, VERSION_KEY, VERSION_METADATA, abort, one_line


class NameVersion(
    grpc.UnaryUnaryClientInterceptor,
    grpc.UnaryStreamClientInterceptor,
    grpc.StreamUnaryClientInterceptor,
    grpc.StreamStreamClientInterceptor,
):
    """Adds this device's version to every call. Costs nothing per message of a stream."""

    def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        return continuation(_Named(details), request)

    intercept_unary_stream = intercept_unary_unary
    intercept_stream_unary = intercept_unary_unary
    intercept_stream_stream = intercept_unary_unary


class _Named(grpc.ClientCallDetails):
    def __init__(self, details: Any) -> None:
        self.method = details.method
        self.timeout = details.timeout
        self.metadata = (*(details.metadata or ()), *VERSION_METADATA)
        self.credentials = details.credentials
        self.wait_for_ready = details.wait_for_ready
        self.compression = details.compression


class CheckVersion(grpc.ServerInterceptor):
    """Refuses calls of another protocol version before any of their content is read.

    A server that answers therefore has the caller's version, so callers need not check in turn.
    """

    def intercept_service(self, continuation: Callable[[Any], Any], details: Any) -> Any:
        handler = continuation(details)
        metadata = {
            str(key): one_line(str(value))[:MAX_VERSION] for key, value in details.invocation_metadata
        }
        theirs = metadata.get(VERSION_KEY)
        if handler is None or theirs == str(PROTOCOL_VERSION):
            return handler
        caller = f"edged {metadata.get(RELEASE_KEY, 'of unknown version')} (protocol {theirs or 'unknown'})"
        mismatch = VersionMismatchError(
            f"the device that answers runs edged {__version__} (protocol {PROTOCOL_VERSION}), "
            f"the one that calls {caller}: install the same version on both"
        )
        return _refusing(handler, mismatch)


def _refusing(handler: Any, error: VersionMismatchError) -> Any:
    """A handler of the same shape that only refuses: the shape has to fit, or the call hangs."""

    def refuse(_request: Any, context: grpc.ServicerContext) -> Any:
        abort(context, error)

    make = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }[(handler.request_streaming, handler.response_streaming)]
    return make(refuse)
