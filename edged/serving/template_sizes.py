"""How much work an operation of a template is, known before it is done.

`Charge` draws units of work from the template's budget and raises SecurityError where it is spent. A unit is
a character handled; an entry of a list counts as `ITEM` of them, which is about what it takes in memory.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

from jinja2.environment import Environment
from jinja2.exceptions import SecurityError
from jinja2.runtime import Undefined
from jinja2.sandbox import SandboxedFormatter
from jinja2.utils import Namespace
from markupsafe import EscapeFormatter, Markup

Charge = Callable[[int], None]

ITEM = 16
MAX_NUMBER = 9_999  # that a method or a filter is given: a width, a count, an indentation
MAX_ITEMS = 100_000  # in a list that an expression yields
MAX_BITS = 1_024  # of an integer

_WIDE = re.compile(r"\d{5}|\*")  # in a format string
_NUMBER = re.compile(r"\d+")


def kind_of(value: Any) -> str:
    """What a value is, in plain words."""
    for kinds, word in (
        (str, "a text"),
        (bool, "true or false"),
        (int | float, "a number"),
        (list | tuple, "a list"),
        (dict, "a mapping"),
    ):
        if isinstance(value, kinds):
            return word
    return "a value of this kind"


def check_kind(value: Any) -> None:
    if isinstance(value, bytes | bytearray | memoryview):
        raise SecurityError("it uses raw bytes, which a chat template has no need of")
    if isinstance(value, complex):
        raise SecurityError("it computes a complex number")
    if isinstance(value, int) and value.bit_length() > MAX_BITS:
        raise SecurityError(f"it computes an integer of more than {MAX_BITS} bits")


def check_items(count: int) -> None:
    if count > MAX_ITEMS:
        raise SecurityError(f"it builds a list of more than {MAX_ITEMS} items")


def check_numbers(values: Iterable[Any], largest: int) -> None:
    for value in values:
        if isinstance(value, int) and abs(value) > largest:
            raise SecurityError(f"it uses a number above {largest} where that is the most")


def weigh(value: Any, charge: Charge) -> int:
    """Charges for everything in `value`, as often as it occurs there; the units charged.

    A list that holds another one twice, which holds another one twice, is as long as its text would be.
    """
    todo, total = [value], 0
    while todo:
        one = todo.pop()
        check_kind(one)
        if isinstance(one, str):
            units = max(1, len(one))
        elif isinstance(one, dict):
            units = ITEM * max(1, len(one))
            todo.extend(one.keys())
            todo.extend(one.values())
        elif isinstance(one, list | tuple | set | frozenset):
            units = ITEM * max(1, len(one))
            todo.extend(one)
        elif isinstance(one, Namespace):
            units = ITEM
            todo.append(object.__getattribute__(one, "_Namespace__attrs"))
        elif hasattr(type(one), "__len__") and not isinstance(one, Undefined):
            units = ITEM * max(1, len(one))
        else:
            units = ITEM
        charge(units)
        total += units
    return total


def weigh_shallow(values: list[Any], charge: Charge) -> None:
    for value in values:
        check_kind(value)
        if isinstance(value, str | list | tuple | dict | range):
            charge(ITEM * len(value) if isinstance(value, list | tuple | range) else len(value))


def weigh_percent(text: str, values: Any, charge: Charge) -> None:
    """`text % values`."""
    _check_widths(text)
    check_numbers(values if isinstance(values, tuple) else (values,), MAX_NUMBER * 10**12)
    charge(sum(int(width) for width in _NUMBER.findall(text)))
    fields = text.count("%")
    several = isinstance(values, tuple | list) and len(values) >= fields
    size = weigh(values, charge)
    charge(len(text) + (0 if several else size * fields))


def weigh_replace(charge: Charge, *texts: Any) -> None:
    if len(texts) >= 3 and all(isinstance(text, str) for text in texts[:3]):
        text, old, new = texts[:3]
        times = text.count(old) if old else len(text) + 1
        charge(len(text) + times * max(0, len(new) - len(old)))


def weigh_join(charge: Charge, separator: str, parts: Any) -> None:
    if isinstance(parts, Undefined):
        return
    for part in parts:
        weigh(part, charge)
        charge(len(separator))


def weigh_split(charge: Charge, method: str, text: str, *args: Any, **kwargs: Any) -> None:
    separator = args[0] if args else kwargs.get("sep")
    if method != "splitlines" and isinstance(separator, str) and separator:
        pieces = text.count(separator) + 1
    else:
        pieces = sum(1 for _ in islice(re.finditer(r"\s+", text), MAX_ITEMS + 1)) + 1
    most = args[1] if len(args) > 1 else kwargs.get("maxsplit", -1)
    if method != "splitlines" and isinstance(most, int) and most >= 0:
        pieces = min(pieces, most + 1)
    check_items(pieces)
    charge(pieces * ITEM)


def weigh_indent(charge: Charge, text: str, width: Any) -> None:
    charge(len(text) + (text.count("\n") + 1) * (len(width) if isinstance(width, str) else int(width)))


def weigh_json(charge: Charge, value: Any, indent: Any) -> None:
    units = weigh(value, charge)
    if indent:
        charge((units // ITEM + 1) * (len(indent) if isinstance(indent, str) else int(indent)))


def _check_widths(text: str) -> None:
    if _WIDE.search(text):
        raise SecurityError(f"it pads a text to more than {MAX_NUMBER} characters")


def limited_format(environment: Environment, text: str, charge: Charge) -> Callable[..., str]:
    """`text.format`, whose every field is looked at before it is written."""

    class Limited(SandboxedFormatter):
        def convert_field(self, value: Any, conversion: Any) -> Any:
            weigh(value, charge)
            return super().convert_field(value, conversion)

        def format_field(self, value: Any, format_spec: str) -> Any:
            _check_widths(format_spec)
            charge(sum(int(width) for width in _NUMBER.findall(format_spec)))
            weigh(value, charge)
            return super().format_field(value, format_spec)

    class LimitedMarkup(Limited, EscapeFormatter):
        pass

    _check_widths(text)

    def format_text(*args: Any, **kwargs: Any) -> str:
        charge(len(text))
        if isinstance(text, Markup):
            formatted = LimitedMarkup(environment, escape=text.escape).vformat(text, args, kwargs)
            return Markup(formatted)  # noqa: S704 (its fields were escaped just now)
        return Limited(environment).vformat(text, args, kwargs)

    return format_text
