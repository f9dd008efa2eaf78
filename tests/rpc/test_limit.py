from __future__ import annotations

import pytest

from edged.errors import OverloadedError
from edged.rpc.limit import Limit


def test_one_more_is_refused_until_one_ends() -> None:
    limit = Limit(2, "transfers")
    with limit.one():
        with limit.one(), pytest.raises(OverloadedError, match="2 transfers already"), limit.one():
            raise AssertionError
        with limit.one():
            pass


def test_a_failure_frees_its_place() -> None:
    limit = Limit(1, "transfers")
    with pytest.raises(ValueError, match="oops"), limit.one():
        raise ValueError("oops")
    with limit.one():
        pass
