"""A place where a daemon can run: a directory of its own, and maybe cores of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.lab.daemon import Daemon
from tests.lab.process import CapturedProcess
from tests.lab.shell import LabError, LabTimeoutError

RUN_TIMEOUT_S = 120.0


def edged_command() -> tuple[str, ...]:
    """The `edged` of the interpreter that runs the tests."""
    script = Path(sys.executable).with_name("edged")
    return (str(script),) if script.exists() else (sys.executable, "-m", "edged")


class Place:
    """`edged` run from here uses `self.home` and writes its temporary files to `self.tmp`."""

    def __init__(self, name: str, root: Path, cores: Sequence[int] = ()) -> None:
        self.name = name
        self.root = root
        self.home = root / "home"
        self.tmp = root / "tmp"
        for directory in (self.home, self.tmp):
            directory.mkdir(parents=True)
        self.cores = tuple(cores)
        self.environment: dict[str, str] = {}
        self._processes: list[CapturedProcess] = []
        self._logs = 0

    @property
    def prefix(self) -> tuple[str, ...]:
        """What goes before every command."""
        return ("taskset", "-c", ",".join(map(str, self.cores))) if self.cores else ()

    def _environment(self) -> Mapping[str, str]:
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("EDGED_")}
        return inherited | {
            "EDGED_HOME": str(self.home),
            "TMPDIR": str(self.tmp),
            "PYTHONUNBUFFERED": "1",
            "HF_HUB_OFFLINE": "1",
            "NO_COLOR": "1",
            **self.environment,
        }

    def popen(self, args: Sequence[str]) -> CapturedProcess:
        """Starts a command here; its pid is the command's own, its output is captured and logged."""
        self._logs += 1
        log = self.root / f"{self._logs:02d}-{Path(args[0]).name}.log"
        process = CapturedProcess(
            [*self.prefix, *args], dict(self._environment()), log, f"{self.name}/{log.stem}"
        )
        self._processes.append(process)
        return process

    def run(
        self, args: Sequence[str], *, timeout: float = RUN_TIMEOUT_S, check: bool = True, stdin: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command here to its end; LabError with its output if it fails and `check` is set."""
        try:
            done = subprocess.run(
                [*self.prefix, *args],
                env=dict(self._environment()),
                capture_output=True,
                text=True,
                input=stdin,
                timeout=timeout,
                check=False,
            )
        except subprocess.TimeoutExpired as expired:
            pieces = (expired.stdout, expired.stderr)
            output = "\n".join(
                piece.decode(errors="replace") if isinstance(piece, bytes) else piece or ""
                for piece in pieces
            )
            raise LabTimeoutError(
                f"{self.name}: {' '.join(args)} took more than {timeout:g} s\n{output}"
            ) from None
        if check and done.returncode != 0:
            raise LabError(
                f"{self.name}: {' '.join(args)} exited with {done.returncode}\n{done.stdout}{done.stderr}"
            )
        return done

    def edged(
        self, *args: str, timeout: float = RUN_TIMEOUT_S, check: bool = True, stdin: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Runs one `edged` command here to its end."""
        return self.run([*edged_command(), *args], timeout=timeout, check=check, stdin=stdin)

    def start_daemon(self, *flags: str) -> Daemon:
        """`edged start` in the background; call `daemon.wait_ready()` before relying on it."""
        return Daemon(self, self.popen([*edged_command(), "start", "--name", self.name, *flags]))

    def files(self) -> set[str]:
        """Every file, socket and directory under the home and the temporary directory, relative to `root`."""
        return {str(path.relative_to(self.root)) for top in (self.home, self.tmp) for path in top.rglob("*")}

    def close(self) -> None:
        """Kills what was started here."""
        for process in self._processes:
            process.close()
