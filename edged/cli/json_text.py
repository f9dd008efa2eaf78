"""What `--json` prints: JSON that every program can read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import isfinite


def json_text(value: object) -> str:
    """JSON knows no Infinity and no NaN: such a figure becomes null, as in the documents of other verbs."""
    return json.dumps(_finite(value), indent=2, allow_nan=False)


def _finite(value: object) -> object:
    if isinstance(value, float):
        return value if isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return value
