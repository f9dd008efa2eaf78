"""Rendering templates from untrusted files: jinja's immutable sandbox, with limits on work and output.

The sandbox keeps a template away from Python's insides but lets it loop, recurse and build text without
end. Here every turn of a loop and every macro call draws on a budget of turns, and every text that an
expression yields is held against the largest allowed output and drawn from a budget of work. What is left
to a hostile template is to waste a bounded time.
"""

from __future__ import annotations

import contextvars
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

MAX_TURNS = 200_000  # of all loops together, macro calls included
MAX_WIDTH = 9_999  # to which a text may be padded
MAX_ITEMS = 100_000  # in a list that an expression yields
MAX_BITS = 1_024  # of an integer
WORK_PER_CHAR = 64  # characters handled in all, per character of allowed output

_PADDING = frozenset(["do_center", "do_indent", "do_wordwrap", "do_format", "do_batch", "do_slice"])
_WIDE = re.compile(r"\d{5}|\*")  # in a format string


@dataclass(slots=True)
class _Budget:
    turns: int
    output: int
    work: int


_budget: contextvars.ContextVar[_Budget | None] = contextvars.ContextVar("edged_template", default=None)


def render_within(limit: int, template: jinja2.Template, **variables: Any) -> str:
    """The rendered text of at most `limit` characters. Raises SecurityError beyond any limit."""
    token = _budget.set(_Budget(MAX_TURNS, limit, limit * WORK_PER_CHAR))
    try:
        pieces, length = [], 0
        for piece in template.generate(**variables):
            length += len(piece)
            if length > limit:
                raise SecurityError(f"it writes more than {limit} characters")
            pieces.append(piece)
        return "".join(pieces)
    finally:
        _budget.reset(token)


def _charge(length: int) -> None:
    budget = _budget.get()
    if budget is None:
        return
    budget.work -= length
    if length > budget.output or budget.work < 0:
        raise SecurityError(f"it builds too much text for an output of {budget.output} characters")


def _checked(value: Any) -> Any:
    if isinstance(value, str):
        _charge(len(value))
    elif isinstance(value, list | tuple) and len(value) > MAX_ITEMS:
        raise SecurityError(f"it builds a list of more than {MAX_ITEMS} items")
    elif isinstance(value, int) and value.bit_length() > MAX_BITS:
        raise SecurityError(f"it computes an integer of more than {MAX_BITS} bits")
    return value


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """The sandbox with the limits of this file; its templates are rendered by `render_within`."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self, **options: Any) -> None:
        # not optimized: constant expressions would be computed while compiling, outside any budget
        super().__init__(optimized=False, finalize=_checked, **options)
        self.globals.pop("lipsum", None)
        for name, function in list(self.filters.items()):
            self.add_filter(name, function)

    def add_filter(self, name: str, function: Callable[..., Any]) -> None:
        self.filters[name] = _limited(function)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        return _Metered(self).visit(tree)  # type: ignore[no-any-return]

    def tick(self) -> None:
        """Compiled into every loop and macro."""
        budget = _budget.get()
        if budget is not None:
            budget.turns -= 1
            if budget.turns < 0:
                raise SecurityError(f"it loops more than {MAX_TURNS} times")

    def join_texts(self, *parts: Any) -> str:
        """Compiled in place of the operator `~`."""
        texts = [str(part) for part in parts]
        _charge(sum(map(len, texts)))
        return "".join(texts)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "**":
            _check_numbers((left, right), 64)
        elif operator == "%" and isinstance(left, str):
            _check_format(left, (right,))
        elif operator == "*":
            for text, times in ((left, right), (right, left)):
                if isinstance(text, str | list | tuple) and isinstance(times, int):
                    _charge(len(text) * times)
        elif operator == "+" and isinstance(left, str) and isinstance(right, str):
            _charge(len(left) + len(right))
        return _checked(super().call_binop(context, operator, left, right))

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        owner = getattr(obj, "__self__", None)
        if isinstance(owner, str):
            name = getattr(obj, "__name__", "")
            _check_numbers((*args, *kwargs.values()), MAX_WIDTH)
            if name == "replace":
                _check_replace(owner, *args)
            elif name == "join" and args:
                args = (list(args[0]), *args[1:])
                _charge(sum(len(str(part)) + len(owner) for part in args[0]))
        return _checked(super().call(context, obj, *args, **kwargs))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None
        format_text = wrapped

        def limited(*args: Any, **kwargs: Any) -> str:
            _check_format(value.__self__, (*args, *kwargs.values()))
            return format_text(*args, **kwargs)

        return limited


class _Metered(NodeTransformer):
    """Puts `tick` into loops and macros and replaces `~`, all beyond the template's own reach."""

    def __init__(self, environment: BoundedEnvironment) -> None:
        self._environment = environment

    def _ticking(self, node: Any) -> nodes.Node:
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(self._call("tick", []), lineno=node.lineno))
        return node  # type: ignore[no-any-return]

    visit_For = visit_Macro = visit_CallBlock = _ticking  # noqa: N815 (jinja's naming)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return self._call("join_texts", node.nodes)

    def _call(self, name: str, arguments: list[nodes.Expr]) -> nodes.Call:
        call = nodes.Call(nodes.EnvironmentAttribute(name), arguments, [], None, None)
        return call.set_environment(self._environment)  # type: ignore[return-value]


def _limited(function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter with limits; it keeps the marks by which jinja hands it a context."""
    name = function.__name__

    def limited(*args: Any, **kwargs: Any) -> Any:
        if name in _PADDING or name == "tojson":
            text = args[0] if name == "do_format" and isinstance(args[0], str) else ""
            _check_format(text, (*args[1:], *kwargs.values()))
        elif name == "do_replace":
            _check_replace(*[argument for argument in args if isinstance(argument, str)])
        elif name == "do_join" and len(args) > 1:
            args = (args[0], list(args[1]), *args[2:])
            separator = str(args[2] if len(args) > 2 else kwargs.get("d", ""))
            _charge(sum(len(str(part)) + len(separator) for part in args[1]))
        return _checked(function(*args, **kwargs))

    limited.__dict__.update(getattr(function, "__dict__", {}))
    limited.__name__ = name
    return limited


def _check_numbers(values: Iterable[Any], largest: int) -> None:
    for value in values:
        if isinstance(value, int) and abs(value) > largest:
            raise SecurityError(f"it uses the number {value} where {largest} is the most")


def _check_format(text: str, arguments: Iterable[Any]) -> None:
    if _WIDE.search(text):
        raise SecurityError(f"it pads a text to more than {MAX_WIDTH} characters")
    _check_numbers(arguments, MAX_WIDTH)


def _check_replace(*texts: Any) -> None:
    if len(texts) >= 3 and all(isinstance(text, str) for text in texts[:3]):
        text, old, new = texts[:3]
        times = text.count(old) if old else len(text) + 1
        _charge(len(text) + times * max(0, len(new) - len(old)))
