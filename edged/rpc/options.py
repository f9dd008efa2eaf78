"""gRPC channel arguments that both ends share, each with its reason."""

from __future__ import annotations

MAX_MESSAGE_BYTES = 64 * 2**20
KEEPALIVE_MS = 2_000  # a silent link is asked after this long
KEEPALIVE_TIMEOUT_MS = 2_500  # and given up after this much more: below 5 s in all
MAX_CONNECTIONS = 512  # a device needs five or so; strangers must not take every file descriptor
DEFAULT_THREADS = 64  # one per call in progress; streams of the ring hold theirs; made only when needed

SHARED: tuple[tuple[str, int | str], ...] = (
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", KEEPALIVE_MS),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),  # no limit: a ring may be idle for hours
)

CLIENT: tuple[tuple[str, int | str], ...] = (
    *SHARED,
    ("grpc.enable_http_proxy", 0),  # devices of one home do not talk through a proxy of the environment
    ("grpc.use_local_subchannel_pool", 1),  # a TCP connection per channel: layers do not delay frames
    ("grpc.enable_retries", 0),  # the ring and the heart know better what to do
    ("grpc.service_config_disable_resolution", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 2_000),  # also the time one attempt to connect gets
    ("grpc.max_reconnect_backoff_ms", 2_000),
)

SERVER: tuple[tuple[str, int | str], ...] = (
    *SHARED,
    ("grpc.so_reuseport", 0),  # or two daemons share a port, and calls reach either
    ("grpc.http2.min_ping_interval_without_data_ms", KEEPALIVE_MS // 2),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.server_handshake_timeout_ms", 5_000),  # whoever connects and says nothing is cut off
    ("grpc.max_allowed_incoming_connections", MAX_CONNECTIONS),
)
