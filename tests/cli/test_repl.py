"""The conversation as a person has it: at a terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.door import Door
from tests.cli.pty_screen import PtyScreen

CTRL_C, CTRL_D, UP, LEFT = "\x03", "\x04", "\x1b[A", "\x1b[D"


@pytest.fixture
def chat(home: Path, door: Door) -> Iterator[PtyScreen]:
    command = [sys.executable, "-m", "edged", "--home", str(home), "chat"]
    with PtyScreen(command, dict(os.environ)) as screen:
        screen.wait_for_prompt()
        yield screen


def test_it_answers_and_ctrl_d_leaves(chat: PtyScreen, door: Door) -> None:
    chat.wait_for("parrot. /help lists the commands")
    chat.send("hello\r")
    chat.wait_for("olleh")
    chat.wait_for_prompt()
    chat.send(CTRL_D)
    assert chat.wait_end() == 0


def test_ctrl_c_stops_the_answer_and_not_the_program(chat: PtyScreen, door: Door) -> None:
    chat.send("endless\r")
    chat.wait_for("1 2 3")
    chat.send(CTRL_C)
    chat.wait_for("stopped.")
    assert door.cancelled.wait(10)
    chat.wait_for_prompt()
    chat.send("/stats\r")
    chat.wait_for("answered, then stopped")
    chat.wait_for("ms/token")
    chat.wait_for_prompt()
    chat.send("hello\r")
    chat.wait_for("olleh")
    messages = door.requests[-1].messages
    assert messages is not None
    assert messages[1].role == "assistant"
    assert messages[1].content.startswith("1 2 3")  # what was said before the interruption is remembered
    chat.wait_for_prompt()
    chat.send("/exit\r")
    assert chat.wait_end() == 0


def test_ctrl_c_at_the_prompt_empties_the_line(chat: PtyScreen, door: Door) -> None:
    chat.send("not this")
    chat.wait_for("not this")
    chat.send(CTRL_C)
    chat.wait_for_prompt()
    chat.send("hello\r")
    chat.wait_for("olleh")
    assert [request.messages[-1].content for request in door.requests if request.messages] == ["hello"]


def test_lines_are_edited_and_remembered(chat: PtyScreen, door: Door, home: Path) -> None:
    chat.send("helo" + LEFT + "l\r")
    chat.wait_for("olleh")
    chat.wait_for_prompt()
    chat.send(UP + "!\r")
    chat.wait_for("!olleh")
    history = home / "history"
    assert history.read_text().splitlines().count("+hello") == 1
    assert history.stat().st_mode & 0o777 == 0o600


def test_a_paste_of_many_lines_is_one_question(chat: PtyScreen, door: Door) -> None:
    chat.send("\x1b[200~first\nsecond\x1b[201~\r")
    chat.wait_for("dnoces")
    assert [request.messages[-1].content for request in door.requests if request.messages] == [
        "first\nsecond"
    ]


def test_an_error_is_one_line_and_the_conversation_goes_on(chat: PtyScreen, door: Door) -> None:
    chat.send("too long\r")
    chat.wait_for("edged: the conversation is longer than the context of 2048 tokens")
    chat.wait_for_prompt()
    chat.send("/model eagle\r")
    chat.wait_for("edged: there is no model 'eagle'")
    chat.wait_for_prompt()
    chat.send("hello\r")
    chat.wait_for("olleh")
    assert len(door.requests[-1].messages or ()) == 1  # the question that failed is not asked again


def test_commands(chat: PtyScreen, door: Door) -> None:
    chat.send("/help\r")
    chat.wait_for("/model [NAME]")
    chat.wait_for_prompt()
    chat.send("/stats\r")
    chat.wait_for("no answer yet")
    chat.wait_for_prompt()
    chat.send("/model crow\r")
    chat.wait_for("now crow.")
    assert door.loads == ["crow"]


def test_a_hostile_model_does_not_steer_the_terminal(chat: PtyScreen, door: Door) -> None:
    before = len(chat.raw)
    chat.send("attack\r")
    chat.wait_for("saferedblinkover")
    said = chat.raw[before:]
    assert b"owned" not in said
    assert b"\x1b[31m" not in said


def test_history_survives(home: Path, door: Door) -> None:
    command = [sys.executable, "-m", "edged", "--home", str(home), "chat"]
    for keys in ("remember me\r", UP + "\r"):
        with PtyScreen(command, dict(os.environ)) as screen:
            screen.wait_for_prompt()
            screen.send(keys)
            screen.wait_for("em rebmemer")
            screen.wait_for_prompt()
            screen.send(CTRL_D)
            assert screen.wait_end() == 0
