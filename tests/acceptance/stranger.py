"""A client that tries every method a daemon serves, as a process: prints {method: [code, detail]} as JSON.

Arguments: HOST:PORT, then for TLS: the server's name, a file of the authority to trust, and maybe files of a
certificate and of its key. Without them it speaks plain HTTP/2.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import grpc

from edged.rpc import edged_pb2

TIMEOUT_S = 4.0


def channel_for(arguments: list[str]) -> grpc.Channel:
    target, *rest = arguments
    if not rest:
        return grpc.insecure_channel(target)
    name, authority, *own = rest
    certificate, key = (Path(own[0]).read_bytes(), Path(own[1]).read_bytes()) if own else (None, None)
    credentials = grpc.ssl_channel_credentials(Path(authority).read_bytes(), key, certificate)
    return grpc.secure_channel(target, credentials, [("grpc.ssl_target_name_override", name)])


def attempt(channel: grpc.Channel, method: str) -> tuple[str, str]:
    """Status of a call with one empty message; on the wire every kind of call begins the same."""
    call = channel.stream_stream(method, request_serializer=bytes, response_deserializer=bytes)
    try:
        for _ in call(iter([b""]), timeout=TIMEOUT_S):
            pass
    except grpc.RpcError as error:
        return error.code().name, error.details() or ""
    return "OK", ""


def main() -> None:
    found = {}
    for service in edged_pb2.DESCRIPTOR.services_by_name.values():
        for method in service.methods:
            name = f"/{service.full_name}/{method.name}"
            with channel_for(sys.argv[1:]) as channel:
                found[name] = attempt(channel, name)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
