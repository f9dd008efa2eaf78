"""Every verb against a real front door on a real socket."""

from __future__ import annotations

import io
import json
import math
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edged import __version__
from edged.cli.json_text import json_text
from edged.cli.main import VERBS, main
from tests.cli.conftest import Outcome
from tests.cli.door import ATTACK, Door

Edged = Callable[..., Outcome]


def test_version(edged: Edged) -> None:
    assert edged("--version") == Outcome(0, f"edged {__version__}\n", "")


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(edged: Edged, verb: str) -> None:
    outcome = edged(verb, "--help")
    assert outcome.code == 0
    assert f"Usage: edged {verb}" in outcome.out
    assert "--home" in outcome.out


def test_help_lists_every_verb(edged: Edged) -> None:
    listed = edged("--help").out
    assert [verb for verb in VERBS if f"\n  {verb} " not in listed] == []


def test_help_is_quick_because_it_imports_little() -> None:
    heavy = {"grpc", "pydantic", "numpy", "rich", "prompt_toolkit", "psutil", "llama_cpp"}
    script = (
        "import sys\nfrom edged.cli.main import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    print(*sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert heavy & set(done.stdout.split()) == set()


@pytest.mark.parametrize(
    "words",
    [
        ("fly",),
        ("start", "--port", "abc"),
        ("start", "--memory", "lots"),
        ("run", "a", "b", "c"),
        ("run", "--max-tokens", "0", "x"),
        ("run", "  "),
        ("status", "--jason"),
        ("import",),
        ("import", "/no/such/file.gguf"),
        ("demo", "--devices", "0"),
    ],
)
def test_a_senseless_command_line_is_exit_code_2(edged: Edged, words: tuple[str, ...]) -> None:
    outcome = edged(*words)
    assert (outcome.code, outcome.out) == (2, "")
    assert "Usage: " in outcome.err


@pytest.mark.parametrize("words", [("status",), ("stop",), ("token",), ("run", "hello"), ("chat",)])
def test_without_a_daemon(edged: Edged, home: Path, words: tuple[str, ...]) -> None:
    line = f"edged: no daemon answers in {home}; start one with: edged start\n"
    assert edged(*words) == Outcome(1, "", line)
    # A daemon that was killed leaves its socket behind.
    (home / "run").mkdir()
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(home / "run" / "daemon.sock"))
    assert edged(*words) == Outcome(1, "", line)


def test_an_unknown_variable_is_one_line(edged: Edged, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGED_COLOUR", "red")
    outcome = edged("status")
    assert outcome.code == 1
    assert outcome.err == "edged: EDGED_COLOUR is not a variable that edged knows; unset it\n"


def test_home_may_come_after_the_verb(home: Path, door: Door, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["--home", "/nowhere", "token", "--home", str(home)])
    assert left.value.code == 0
    assert capfd.readouterr().out == "edged-1-secret\n"


def test_token(edged: Edged, door: Door) -> None:
    outcome = edged("token")
    assert (outcome.code, outcome.out) == (0, "edged-1-secret\n")
    assert "edged start --join edged-1-secret" in outcome.err


def test_status_as_json(edged: Edged, door: Door) -> None:
    status = json.loads(edged("status", "--json").out)
    assert status == json.loads(door.status().model_dump_json())


def test_json_has_no_infinity(edged: Edged, door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    status = door.status().model_copy(update={"measured_tpot_ms": math.inf})
    monkeypatch.setattr(door, "status", lambda: status)
    assert json.loads(edged("status", "--json").out, parse_constant=pytest.fail)["measured_tpot_ms"] is None
    values = {"a": (1.5, math.nan), "b": [{"c": -math.inf}]}
    assert json.loads(json_text(values)) == {"a": [1.5, None], "b": [{"c": None}]}


def test_status_for_people(edged: Edged, door: Door) -> None:
    door.problem = "pi no longer answers"
    shown = edged("status").out
    facts = dict(line.split(maxsplit=1) for line in shown.splitlines()[:11])
    assert facts["state"] == "ready"
    assert facts["problem"] == "pi no longer answers"
    assert facts["ring"] == "nuc 0-3 → pi 4-10 → nuc 11"
    assert facts["speed"] == "41.2 ms/token measured, 38.0 expected"
    assert facts["note"] == "memory has room for less"
    assert "left out  id-old: it is too slow" in shown
    nuc, pi = (next(line for line in shown.splitlines() if line.startswith(name)) for name in ("nuc ", "pi "))
    assert "0-3, 11" in nuc
    assert "this device, coordinator, head" in nuc
    assert "1.0 GiB" in nuc
    assert "4-10" in pi
    assert "7 s ago" in pi
    assert "\x1b" not in shown


def test_status_with_nothing_loaded(edged: Edged, door: Door) -> None:
    door.loaded = ""
    shown = edged("status").out
    assert "model     none" in shown
    assert "ring " not in shown


def test_models(edged: Edged, door: Door) -> None:
    rows = [line.split() for line in edged("models").out.splitlines()[2:]]
    assert [row[0] for row in rows] == ["parrot", "crow"]
    assert rows[0][-1] == "loaded"
    assert rows[0][5:9] == ["3.0", "MiB", "1.0", "MiB"]
    listed = json.loads(edged("models", "--json").out)
    assert [model["name"] for model in listed] == ["parrot", "crow"]


def test_stop_waits_for_the_process(edged: Edged, door: Door) -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        door.pid = process.pid
        process.stdin.close()
        outcome = edged("stop")
        assert (outcome.code, outcome.err) == (0, "edged has stopped.\n")
        assert door.stopped.is_set()


def test_run_prints_only_the_answer(edged: Edged, door: Door) -> None:
    assert edged("run", "hello") == Outcome(0, "olleh\n", "")
    request = door.requests[0]
    assert request.model == "parrot"
    assert request.messages is not None
    assert [(message.role, message.content) for message in request.messages] == [("user", "hello")]
    assert door.loads == []


def test_run_passes_its_options_on(edged: Edged, door: Door) -> None:
    edged("run", "--max-tokens", "5", "--temperature", "0", "--seed", "42", "hello")
    request = door.requests[0]
    assert (request.max_tokens, request.sampling.temperature, request.sampling.seed) == (5, 0.0, 42)


def test_run_loads_the_model_it_is_given(edged: Edged, door: Door) -> None:
    outcome = edged("run", "crow", "hello")
    assert (outcome.code, outcome.out) == (0, "olleh\n")
    assert "loading layers on nuc: 4 of 4 layers" in outcome.err
    assert (door.loads, door.requests[0].model) == (["crow"], "crow")


def test_run_with_a_model_that_is_not_there(edged: Edged, door: Door) -> None:
    outcome = edged("run", "eagle", "hello")
    assert outcome == Outcome(1, "", "edged: there is no model 'eagle'; there is: parrot, crow\n")


def test_run_without_a_loaded_model_asks_which(edged: Edged, door: Door) -> None:
    door.loaded = ""
    assert edged("run", "hello") == Outcome(
        1, "", "edged: several models are here; name one of: parrot, crow\n"
    )


@pytest.mark.parametrize("words", [("run",), ("run", "-"), ("run", "parrot", "-")])
def test_run_reads_the_prompt_from_a_pipe(
    edged: Edged, door: Door, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("grüß\ndich\n".encode())))
    assert edged(*words).out == "hcid\nßürg\n"


def test_run_reports_an_error_amid_the_answer(edged: Edged, door: Door) -> None:
    outcome = edged("run", "too long")
    assert (outcome.code, outcome.out) == (1, "begun")
    assert outcome.err == "edged: the conversation is longer than the context of 2048 tokens\n"


def test_run_gives_a_file_every_byte(edged: Edged, door: Door) -> None:
    assert edged("run", "attack").out == ATTACK + "\n"


def test_a_reader_that_leaves_is_no_fault(home: Path, door: Door) -> None:
    script = f"{sys.executable} -m edged --home {home} run endless | head -c 1"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("1", "")
    assert door.cancelled.wait(10)


def test_a_conversation_from_a_pipe(edged: Edged, door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = "hello\n\n/stats\n/model crow\n/model\n/clear\n/fly\nagain\n/exit\nnever\n"
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(lines.encode())))
    outcome = edged("chat")
    assert outcome.code == 0
    assert outcome.out.startswith("olleh\n")
    assert outcome.out.endswith("niaga\n")
    assert "11 asked, 5 answered" in outcome.out
    assert "cached       7 " in outcome.out
    assert "25.0 ms/token" in outcome.out
    assert "nuc 0-3 → pi 4-10 → nuc 11" in outcome.out
    assert "* crow" in outcome.out
    assert "there is no /fly" in outcome.err
    assert [len(request.messages or ()) for request in door.requests] == [1, 1]  # /clear forgot the first
    assert [request.model for request in door.requests] == ["parrot", "crow"]


def test_a_conversation_remembers(edged: Edged, door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"one\ntwo\n")))
    assert edged("chat").code == 0
    messages = door.requests[1].messages
    assert messages is not None
    assert [(message.role, message.content) for message in messages] == [
        ("user", "one"),
        ("assistant", "eno"),
        ("user", "two"),
    ]


def test_an_error_ends_a_script_of_questions(
    edged: Edged, door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"too long\nnever asked\n")))
    assert edged("chat").code == 1
    assert len(door.requests) == 1


def test_ctrl_c_ends_run_with_130(home: Path, door: Door) -> None:
    command = [sys.executable, "-m", "edged", "--home", str(home), "run", "endless"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.read(2) == b"1 "
        os.kill(process.pid, 2)
        _, err = process.communicate(timeout=20)
    assert (process.returncode, err.strip()) == (130, b"")
    assert door.cancelled.wait(10)
