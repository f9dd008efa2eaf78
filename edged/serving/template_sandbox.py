"""Templates from untrusted files: jinja's immutable sandbox, narrowed, with limits on work, output and time.

The sandbox keeps a template away from Python's insides but lets it loop, recurse and build values without
end. Here a template has the methods and filters that chat templates use and no others; every turn of a loop
and every call draws on a budget of turns; what builds a text or a list draws its size from a budget of work
before it is built. All this is the first line of defence and gives the clear messages. It cannot be complete
(comparing two deeply shared lists is one instruction that never ends), so untrusted templates are rendered
in a process of their own, which has hard limits: `edged.serving.template_child`.
"""

from __future__ import annotations

import contextvars
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext, Macro, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from edged.serving import template_sizes as sizes

MAX_TURNS = 200_000  # of all loops together, calls included
MAX_SECONDS = 2.0  # of wall-clock time, compiling not included
WORK_PER_CHAR = 64  # units of work in all, per character of allowed output


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# The chat templates that llama.cpp ships use about half of these; the others are as harmless.
_TEXT_METHODS = _names(
    "capitalize count endswith find format index isalnum isalpha isdecimal isdigit islower isnumeric isspace"
    " istitle isupper join lower lstrip partition removeprefix removesuffix replace rfind rindex rpartition"
    " rsplit rstrip split splitlines startswith strip swapcase title upper"
)
_LIST_METHODS = frozenset(["count", "index"])
_DICT_METHODS = frozenset(["get", "items", "keys", "values"])
_LOOP_FACTS = _names(
    "changed cycle depth depth0 first index index0 last length nextitem previtem revindex revindex0"
)
_MACRO_FACTS = frozenset(["arguments", "caller", "catch_kwargs", "catch_varargs", "name"])
_FILTERS = _names(
    "abs batch capitalize center count d default dictsort e escape first float format groupby indent int"
    " items join last length list lower map max min reject rejectattr replace reverse round safe select"
    " selectattr slice sort string sum title tojson trim truncate unique upper urlencode wordcount"
)
_SHALLOW = _names(  # filters that do not look into what is in a list
    "batch count d default first items last length list map reject rejectattr reverse select selectattr slice"
)
_GLOBALS = ("range", "dict", "namespace", "cycler", "joiner")
_INERT = frozenset(["d", "default", "max", "min", "sum"])  # filters to which a number says no size


@dataclass(slots=True)
class _Budget:
    turns: int
    output: int
    work: int
    deadline: float


_budget: contextvars.ContextVar[_Budget | None] = contextvars.ContextVar("edged_template", default=None)


def render_within(limit: int, template: jinja2.Template, **variables: Any) -> str:
    """The rendered text of at most `limit` characters. Raises SecurityError beyond any limit."""
    budget = _Budget(MAX_TURNS, limit, limit * WORK_PER_CHAR, time.monotonic() + MAX_SECONDS)
    token = _budget.set(budget)
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


def charge(work: int) -> None:
    """Draws `work` units (characters, roughly) before they are spent. Raises SecurityError."""
    budget = _budget.get()
    if budget is None:
        return
    budget.work -= work
    if work > max(budget.output, sizes.MAX_ITEMS * sizes.ITEM) or budget.work < 0:
        raise SecurityError(f"it builds too much for an output of {budget.output} characters")
    _check_time(budget)


def _tick() -> None:
    budget = _budget.get()
    if budget is None:
        return
    budget.turns -= 1
    if budget.turns < 0:
        raise SecurityError(f"it loops more than {MAX_TURNS} times")
    _check_time(budget)


def _check_time(budget: _Budget) -> None:
    if time.monotonic() > budget.deadline:
        raise SecurityError(f"it takes more than {MAX_SECONDS:g} seconds")


def _checked(value: Any) -> Any:
    """A value that an expression yields: of a kind and a size that a template may have."""
    sizes.check_kind(value)
    if isinstance(value, str):
        charge(len(value))
    elif isinstance(value, list | tuple | dict):
        sizes.check_items(len(value))
        charge(len(value) * sizes.ITEM)
    return value


def _written(value: Any) -> Any:
    """A value on its way into the output, where it becomes text."""
    sizes.weigh(value, charge)
    return value


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """The sandbox with the limits of this file; its templates are rendered by `render_within`."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self, **options: Any) -> None:
        # not optimized: constant expressions would be computed while compiling, outside any budget
        super().__init__(optimized=False, finalize=_written, **options)
        self.globals = {name: self.globals[name] for name in _GLOBALS}
        known, self.filters = self.filters, {}
        for name in _FILTERS:
            self.add_filter(name, known[name])

    def add_filter(self, name: str, function: Callable[..., Any]) -> None:
        self.filters[name] = _limited(name, function)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        return _Metered(self).visit(tree)  # type: ignore[no-any-return]

    # Compiled into templates by `_Metered`

    def tick(self) -> None:
        """Into every loop, macro and block."""
        _tick()

    def charge(self, work: int) -> None:
        """Before text that the template writes as it stands."""
        charge(work)

    def join_texts(self, *parts: Any) -> str:
        """In place of the operator `~`."""
        for part in parts:
            sizes.weigh(part, charge)
        return str(_checked("".join([str(part) for part in parts])))

    def cut(self, value: Any, start: Any, stop: Any, step: Any) -> Any:
        """In place of `value[start:stop:step]`."""
        where = slice(start, stop, step)
        if isinstance(value, str | list | tuple):
            count = len(range(*where.indices(len(value))))
            charge(count if isinstance(value, str) else count * sizes.ITEM)
        return value[where]

    # What jinja asks

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        for kind, allowed in (
            (str, _TEXT_METHODS),
            (dict, _DICT_METHODS),
            (list | tuple, _LIST_METHODS),
            (LoopContext, _LOOP_FACTS),
            (Macro, _MACRO_FACTS),
        ):
            if isinstance(obj, kind):
                return attr in allowed
        return isinstance(obj, Namespace) and super().is_safe_attribute(obj, attr, value)

    def unsafe_undefined(self, obj: Any, attribute: str) -> Undefined:
        fault = f"it may not use {attribute!r} of {sizes.kind_of(obj)}"
        return self.undefined(fault, name=attribute, obj=obj, exc=SecurityError)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "**":
            sizes.check_numbers((left, right), 64)
        elif operator == "%" and isinstance(left, str):
            sizes.weigh_percent(left, right, charge)
        elif operator == "*":
            for sequence, times in ((left, right), (right, left)):
                if isinstance(sequence, str | list | tuple) and isinstance(times, int):
                    unit = 1 if isinstance(sequence, str) else sizes.ITEM
                    charge(len(sequence) * max(0, times) * unit)
        elif operator == "+":
            for sequence in (left, right):
                if isinstance(sequence, str | list | tuple):
                    charge(len(sequence))
        for value in (left, right):
            sizes.check_kind(value)
        return _checked(super().call_binop(context, operator, left, right))

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        _tick()
        owner = getattr(obj, "__self__", None)
        if isinstance(owner, str):
            name = getattr(obj, "__name__", "")
            sizes.check_numbers((*args, *kwargs.values()), sizes.MAX_NUMBER)
            charge(len(owner))
            if name == "replace":
                sizes.weigh_replace(charge, owner, *args)
            elif name == "join" and args:
                args = (list(args[0]), *args[1:])
                sizes.weigh_join(charge, owner, args[0])
            elif name in ("split", "rsplit", "splitlines"):
                sizes.weigh_split(charge, name, owner, *args, **kwargs)
        elif isinstance(owner, list | tuple):
            sizes.weigh(owner, charge)
        return _checked(super().call(context, obj, *args, **kwargs))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        if super().wrap_str_format(value) is None or value.__name__ != "format":
            return None
        return sizes.limited_format(self, value.__self__, charge)


class GenerationTags(Extension):
    """`{% generation %}` marks what was generated in training; what is between the tags stays."""

    tags = {"generation"}  # noqa: RUF012 (jinja's way)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Metered(NodeTransformer):
    """Puts the meters into the template's tree, all beyond the template's own reach."""

    def __init__(self, environment: BoundedEnvironment) -> None:
        self._environment = environment

    def _ticking(self, node: Any) -> nodes.Node:
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(self._call("tick", []), lineno=node.lineno))
        return node  # type: ignore[no-any-return]

    visit_For = visit_Macro = visit_CallBlock = visit_Block = _ticking  # noqa: N815 (jinja's naming)

    def visit_Output(self, node: nodes.Output) -> list[nodes.Node]:  # noqa: N802
        self.generic_visit(node)
        written = sum(len(part.data) for part in node.nodes if isinstance(part, nodes.TemplateData))
        meter = nodes.ExprStmt(self._call("charge", [nodes.Const(written)]), lineno=node.lineno)
        return [meter, node] if written else [node]

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return self._call("join_texts", node.nodes)

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        where = node.arg
        if not isinstance(where, nodes.Slice):
            return node
        ends = [end or nodes.Const(None) for end in (where.start, where.stop, where.step)]
        return self._call("cut", [node.node, *ends])

    def _call(self, name: str, arguments: list[nodes.Expr]) -> nodes.Call:
        call = nodes.Call(nodes.EnvironmentAttribute(name), arguments, [], None, None)
        return call.set_environment(self._environment)  # type: ignore[return-value]


def _limited(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter with limits; it keeps the marks by which jinja hands it a context."""
    leading = 1 if hasattr(function, "jinja_pass_arg") else 0

    def limited(*given: Any, **kwargs: Any) -> Any:
        _tick()
        args = list(given[leading:])
        if args and isinstance(args[0], Iterator) and name not in _SHALLOW:
            args[0] = list(args[0])
        if name not in _INERT:
            sizes.check_numbers((*args[1:], *kwargs.values()), sizes.MAX_NUMBER)
        if name in _SHALLOW:
            sizes.weigh_shallow(args, charge)
        else:
            for value in (*args, *kwargs.values()):
                sizes.weigh(value, charge)
        if name == "format" and args:
            sizes.weigh_percent(str(args[0]), kwargs or tuple(args[1:]), charge)
        elif name == "replace" and len(args) >= 3:
            sizes.weigh_replace(charge, *[str(arg) for arg in args[:3]])
        elif name == "join" and args:
            sizes.weigh_join(charge, str(args[1] if len(args) > 1 else kwargs.get("d", "")), args[0])
        elif name == "indent" and args:
            width = args[1] if len(args) > 1 else kwargs.get("width", 4)
            sizes.weigh_indent(charge, str(args[0]), width)
        elif name == "tojson" and args:
            indent = kwargs.get("indent", args[2] if len(args) > 2 else None)
            sizes.weigh_json(charge, args[0], indent)
        result = function(*given[:leading], *args, **kwargs)
        return _each_ticking(result) if isinstance(result, Iterator) else _checked(result)

    limited.__dict__.update(getattr(function, "__dict__", {}))
    return limited


def _each_ticking(items: Iterator[Any]) -> Iterator[Any]:
    for item in items:
        charge(sizes.ITEM)
        yield item
