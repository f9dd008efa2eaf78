"""How fast a processor multiplies by each type of weights, on a machine that does other things as well.

Other programs may have the cores during all of a type's few runs, of one token's or of a chunk's: so every
type is measured twice, at different times, and again as long as there is doubt. An interruption makes a
figure too low, never too high: of each the best counts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from edged.backend.native import Speed

ROUNDS = 2  # of all types, one after the other: an interruption seldom meets a type in both
MORE_ROUNDS = 3  # at most, of the types in doubt
AGREE = 0.9  # the second best of the best: an undisturbed processor repeats itself to a few per cent
# Times slower than the fastest type: more than types differ where all have kernels of their own. One without
# quick kernels is measured more often in vain, and stays slow.
FAR_SLOWER = 4


def type_speeds(
    measure: Callable[[str], Speed | None], types: Sequence[str], step: Callable[[], None]
) -> dict[str, Speed]:
    """measure: one type, shortly; None where the processor cannot. step: called before each type of a round.

    Types that cannot be measured are left out.
    """
    seen: dict[str, list[Speed]] = {}
    for _ in range(ROUNDS):
        for ggml_type in types:
            step()
            _look(measure, ggml_type, seen)
    for _ in range(MORE_ROUNDS):
        for ggml_type in _in_doubt(seen):
            _look(measure, ggml_type, seen)
    return {ggml_type: _best(speeds) for ggml_type, speeds in seen.items()}


def _look(measure: Callable[[str], Speed | None], ggml_type: str, seen: dict[str, list[Speed]]) -> None:
    speed = measure(ggml_type)
    if speed is not None:
        seen.setdefault(ggml_type, []).append(speed)


def _best(speeds: Sequence[Speed]) -> Speed:
    return Speed(max(one.bandwidth for one in speeds), max(one.flops for one in speeds))


def _in_doubt(seen: dict[str, list[Speed]]) -> list[str]:
    """Types whose best figure nothing confirms, or which are far slower than the fastest type."""
    best = {ggml_type: _best(speeds) for ggml_type, speeds in seen.items()}
    if not best:
        return []
    fastest = _best(list(best.values()))
    return [
        ggml_type
        for ggml_type, speeds in seen.items()
        if best[ggml_type].bandwidth * FAR_SLOWER < fastest.bandwidth
        or best[ggml_type].flops * FAR_SLOWER < fastest.flops
        or not _agree([one.bandwidth for one in speeds])
        or not _agree([one.flops for one in speeds])
    ]


def _agree(figures: Sequence[float]) -> bool:
    best, second, *_ = (*sorted(figures, reverse=True), 0.0)
    return second >= AGREE * best
