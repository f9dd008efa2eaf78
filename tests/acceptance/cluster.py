"""A cluster under test: a head that has the bundled model, and workers that joined by token."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edged.rpc.messages import StatusAnswer
from tests.acceptance.reference import bundled_model
from tests.lab import Daemon, Device, Home

MODEL = "smollm2"
HTTP = "127.0.0.1:7480"
BASE_URL = f"http://{HTTP}/v1"
FLAGS = ("--threads", "1")  # three daemons share two cores
CLIENT = Path(__file__).with_name("openai_client.py")


@dataclass
class Cluster:
    """Daemons of one cluster; the first is the head."""

    home: Home
    daemons: list[Daemon]

    @property
    def head(self) -> Daemon:
        return self.daemons[0]

    @property
    def workers(self) -> list[Daemon]:
        return self.daemons[1:]

    @property
    def device(self) -> Device:
        """The head's device."""
        place = self.head.place
        assert isinstance(place, Device)
        return place

    def wait_ring_of(self, devices: int, timeout: float = 90.0, newer_than: int = 0) -> StatusAnswer:
        """The head's status once a plan over so many devices answers, later than epoch `newer_than`."""

        def wanted(status: StatusAnswer) -> bool:
            plan = status.plan
            return (
                status.state == "ready"
                and plan is not None
                and len(plan.devices) == devices
                and plan.epoch > newer_than
            )

        return self.head.wait_until(wanted, f"ring of {devices} devices after epoch {newer_than}", timeout)

    def openai(
        self, jobs: Sequence[dict[str, Any]], *, together: bool = False, timeout: float = 120.0
    ) -> list[dict[str, Any]]:
        """Answers of the official client, which runs on the head's device."""
        task = {"base_url": BASE_URL, "together": together, "jobs": list(jobs)}
        done = self.head.place.run([sys.executable, str(CLIENT)], stdin=json.dumps(task), timeout=timeout)
        answers: list[dict[str, Any]] = json.loads(done.stdout)
        return answers


def import_bundled(daemon: Daemon) -> None:
    daemon.place.edged("import", str(bundled_model()), "--name", MODEL)


def join(founder: Daemon, device: Device, *flags: str) -> Daemon:
    """Starts a daemon on `device` that joins with a fresh token."""
    daemon = device.start_daemon("--join", founder.token(), *FLAGS, *flags)
    daemon.wait_until(lambda status: len(status.members) > 1, "joined cluster")
    return daemon


def form_cluster(home: Home, names: Sequence[str] = ("head", "attic", "cellar"), *flags: str) -> Cluster:
    """Starts the head, lets the others join, and brings the bundled model to all of them."""
    head = home.device(names[0]).start_daemon(*FLAGS, *flags)
    head.wait_started()
    import_bundled(head)
    workers = [join(head, home.device(name), *flags) for name in names[1:]]
    cluster = Cluster(home, [head, *workers])
    head.place.edged("run", MODEL, "Hello", "--max-tokens", "1")
    cluster.wait_ring_of(len(names))
    return cluster


def chat_job(prompt: str, max_tokens: int = 32, **params: Any) -> dict[str, Any]:
    """A chat request at temperature 0."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": prompt}], "temperature": 0}
    return {"chat": True, "params": body | {"max_tokens": max_tokens} | params}


def text_job(prompt: str, max_tokens: int = 32, **params: Any) -> dict[str, Any]:
    """A raw completion at temperature 0."""
    body = {"model": MODEL, "prompt": prompt, "temperature": 0, "max_tokens": max_tokens}
    return {"chat": False, "params": body | params}
