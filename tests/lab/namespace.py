"""A network namespace: made by name, entered by commands and sockets, gone with everything in it."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import psutil

from tests.lab.shell import attempt, sh

CLONE_NEWNET = 0x40000000
NAMED = Path("/run/netns")
KILL_WAIT_S = 10.0

T = TypeVar("T")


class Namespace:
    """One namespace with its loopback up."""

    def __init__(self, name: str) -> None:
        self.name = name
        sh("ip", "netns", "add", name)
        self.ip("link", "set", "dev", "lo", "up")

    @property
    def prefix(self) -> tuple[str, ...]:
        """What goes before a command to run it inside.

        `nsenter` rather than `ip netns exec`: the latter mounts a new /sys, where no cgroup is seen,
        and a daemon must see its memory limit. Both replace themselves by the command.
        """
        return ("nsenter", f"--net={NAMED / self.name}", "--")

    def ip(self, *args: str) -> str:
        return sh("ip", "-n", self.name, *args)

    def enter(self, action: Callable[[], T]) -> T:
        """Calls `action` in a thread that is inside; a socket made there stays there."""
        results: list[T] = []
        problems: list[BaseException] = []

        def inside() -> None:
            try:
                with (NAMED / self.name).open("rb") as handle:
                    libc = ctypes.CDLL(None, use_errno=True)
                    if libc.setns(handle.fileno(), CLONE_NEWNET) != 0:
                        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
                results.append(action())
            except BaseException as error:  # noqa: BLE001 - raised again below, in the caller's thread
                problems.append(error)

        thread = threading.Thread(target=inside, name=f"inside-{self.name}")
        thread.start()
        thread.join()
        if problems:
            raise problems[0]
        return results[0]

    def connect(self, port: int, host: str = "127.0.0.1", timeout: float = 10.0) -> socket.socket:
        """A TCP connection made from inside."""
        return self.enter(lambda: socket.create_connection((host, port), timeout))

    def listening(self) -> list[str]:
        """Addresses on which something inside listens, TCP and UDP."""
        lines = sh(*self.prefix, "ss", "-Hlntu").splitlines()
        return [line.split()[4] for line in lines if line.strip()]

    def close(self) -> None:
        destroy(self.name)


def pids_inside(name: str) -> list[int]:
    return [int(pid) for pid in sh("ip", "netns", "pids", name).split()]


def kill_inside(name: str) -> list[int]:
    """Kills every process in the namespace; returns those that were there."""
    if not (NAMED / name).exists():
        return []
    found = []
    for pid in pids_inside(name):
        try:
            found.append(psutil.Process(pid))
            os.kill(pid, signal.SIGKILL)
        except (psutil.NoSuchProcess, ProcessLookupError):
            continue
    psutil.wait_procs(found, timeout=KILL_WAIT_S)
    return [process.pid for process in found]


def destroy(name: str) -> None:
    """Kills what runs inside and removes the namespace with its links; silent if it is gone already."""
    kill_inside(name)
    if (NAMED / name).exists():
        attempt("ip", "netns", "delete", name)
