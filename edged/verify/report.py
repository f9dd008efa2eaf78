"""What a verification found, for programs and for people."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

from edged.verify.comparison import Place
from edged.verify.cuts import Cut, Refused


@dataclass(frozen=True, slots=True)
class CutResult:
    """One cut against the whole model. `fault` is what ended it, where it could not be run to its end."""

    cut: Cut
    exact: bool
    max_abs_diff: float | None
    differs_from: Place | None = None
    first_boundary: int | None = None  # the first one with which the result is another
    fault: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """All of it. `reason` says why no cut was tried, or why the model could not be run at all."""

    model: str
    architecture: str
    n_layers: int
    boundaries: tuple[int, ...]
    tokens: int
    kv_type: str
    flash_attention: str
    reference: str  # file or store
    whole: CutResult | None
    cuts: tuple[CutResult, ...]
    refused: tuple[Refused, ...]
    rolled_back: bool
    reason: str = ""

    @property
    def exact(self) -> bool:
        """Whether something was compared and all that was compared is equal bit for bit."""
        compared = [*self.cuts, *([self.whole] if self.whole else [])]
        return bool(compared) and all(result.exact for result in compared)

    def as_json(self) -> dict[str, object]:
        return {
            "exact": self.exact,
            "model": self.model,
            "architecture": self.architecture,
            "n_layers": self.n_layers,
            "boundaries": list(self.boundaries),
            "tokens": self.tokens,
            "kv_type": self.kv_type,
            "flash_attention": self.flash_attention,
            "reference": self.reference,
            "rolled_back": self.rolled_back,
            "whole": None if self.whole is None else _result(self.whole),
            "cuts": [_result(result) for result in self.cuts],
            "refused": [asdict(refused) for refused in self.refused],
            "reason": self.reason,
        }

    def lines(self) -> list[str]:
        """A heading, and a line for every cut."""
        kept = f"{self.kv_type} cache, flash attention {self.flash_attention}"
        lines = [f"{self.model}: {self.architecture}, {self.n_layers} layers; {self.tokens} tokens, {kept}"]
        if self.whole is not None:
            lines.append(f"uncut: {_outcome(self.whole)}")
        lines += [f"{_where(result.cut, self.n_layers)}: {_outcome(result)}" for result in self.cuts]
        lines += [f"in {refused.windows} windows: refused, {refused.reason}" for refused in self.refused]
        if self.reason:
            lines.append(self.reason)
        return lines


def _result(result: CutResult) -> dict[str, object]:
    found: dict[str, object] = {
        "boundaries": list(result.cut.boundaries),
        "exact": result.exact,
        # JSON has no infinity: where one of two values is no number, there is no difference to tell
        "max_abs_diff": result.max_abs_diff if math.isfinite(result.max_abs_diff or 0.0) else None,
    }
    if result.differs_from is not None:
        found["differs_from"] = asdict(result.differs_from)
        found["first_boundary"] = result.first_boundary
    if result.fault:
        found["fault"] = result.fault
    return found


def _where(cut: Cut, n_layers: int) -> str:
    if cut.n_windows == n_layers > 1:
        return "one window per layer" if n_layers > 3 else f"cut before {_list(cut)}, one window per layer"
    return f"cut before {_list(cut)}" if cut.boundaries else "uncut"


def _list(cut: Cut) -> str:
    shown = [str(boundary) for boundary in cut.boundaries]
    if len(shown) > 8:
        shown = [*shown[:4], "...", *shown[-2:]]
    return ", ".join(shown)


def _outcome(result: CutResult) -> str:
    if result.exact:
        return "exact"
    if result.fault:
        return f"failed, {result.fault}"
    assert result.differs_from is not None
    place = result.differs_from
    text = f"differs by up to {result.max_abs_diff:.3g}, from position {place.position} of "
    text += f"sequence {place.sequence} on"
    if result.first_boundary is not None:
        text += f"; the cut before layer {result.first_boundary} is the first to change anything"
    return text
