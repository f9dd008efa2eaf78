"""tools/with_progress.py: quiet when all is well, helpful when it is not."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

TOOL = Path(__file__).parent.parent / "tools" / "with_progress.py"


def run(log: Path, script: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(TOOL), "building", str(log), sys.executable, "-c", script]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_quick_success_says_nothing_and_logs_all(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "build.log"
    done = run(log, "import sys; print('[1/2] one'); print('[2/2] two', file=sys.stderr)")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert sorted(log.read_text().splitlines()) == ["[1/2] one", "[2/2] two"]


def test_a_failure_shows_the_end_of_the_log_and_the_exit_code(tmp_path: Path) -> None:
    done = run(tmp_path / "build.log", "for i in range(100): print('line', i)\nraise SystemExit(7)")
    assert done.returncode == 7
    first, *rest = done.stderr.splitlines()
    assert first.startswith("building: failed after 0:0")
    assert rest == [f"line {index}" for index in range(60, 100)]


def test_ending_it_ends_what_the_command_has_started(tmp_path: Path) -> None:
    """Every process of the command holds the log's pipe open, and the tool reads it to its end."""
    script = "sleep 1000 & echo begun; wait"
    log = tmp_path / "build.log"
    command = [sys.executable, str(TOOL), "building", str(log), "bash", "-c", script]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as tool:
        while not (log.exists() and log.stat().st_size):
            assert tool.poll() is None
        tool.send_signal(signal.SIGTERM)
        assert tool.wait(30) == 130
