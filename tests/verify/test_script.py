"""What is computed: chunks, single tokens, a second sequence, and a way back."""

from __future__ import annotations

import pytest

from edged.verify.script import (
    LEAST_TOKENS,
    Frame,
    Rollback,
    Step,
    frames,
    make_script,
    positions_needed,
    until,
)


@pytest.mark.parametrize("n_tokens", [LEAST_TOKENS, 5, 17, 48, 100])
@pytest.mark.parametrize("rollback", [False, True])
def test_every_sequence_goes_on_where_it_was(n_tokens: int, rollback: bool) -> None:
    script = make_script(n_tokens, 300, 16, rollback)
    following: dict[int, int] = {}
    longest: dict[int, int] = {}
    for step in script:
        if isinstance(step, Rollback):
            assert 0 < step.start < following[step.seq]
            following[step.seq] = step.start
            continue
        assert step.start == following.get(step.seq, 0)
        assert 1 <= len(step.tokens) <= 16
        assert all(0 <= token < 300 for token in step.tokens)
        following[step.seq] = step.start + len(step.tokens)
        longest[step.seq] = max(longest.get(step.seq, 0), following[step.seq])
    assert longest[0] == n_tokens
    assert set(longest) == {0, 1}
    assert max(longest.values()) == positions_needed(script)
    assert any(isinstance(step, Rollback) for step in script) == rollback


def test_it_is_the_same_every_time() -> None:
    assert make_script(48, 300, 16, True) == make_script(48, 300, 16, True)
    assert (
        make_script(48, 300, 16, False)
        == make_script(48, 300, 16, True)[: len(make_script(48, 300, 16, False))]
    )


def test_what_is_computed_again_is_computed_with_other_tokens() -> None:
    script = make_script(48, 300, 16, True)
    at = next(index for index, step in enumerate(script) if isinstance(step, Rollback))
    assert tokens_from(script[:at], 45) != tokens_from(script[at:], 45)


def tokens_from(steps: tuple[Step, ...], position: int) -> list[int]:
    found = [step for step in steps if isinstance(step, Frame) and step.seq == 0]
    return [token for step in found for at, token in enumerate(step.tokens, step.start) if at >= position]


def test_the_logits_of_a_chunk_are_wanted_all_or_the_last() -> None:
    wanted = {
        len(frame.outputs) for frame in frames(make_script(48, 300, 16, False)) if len(frame.tokens) == 16
    }
    assert wanted == {1, 16}


def test_until_a_frame() -> None:
    script = make_script(48, 300, 16, True)
    every = list(frames(script))
    assert list(frames(until(script, 4))) == every[:5]
    assert until(script, len(every) - 1) == script
