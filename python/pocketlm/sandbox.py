"""The sandbox of chat templates: Jinja as published templates expect it, with bounds on what it can spend.

Loops, macros and the entries of lists and mappings that a template makes are counted; no operator, filter or
method makes a string or a list beyond a limit; filters whose cost is not bounded by that do not exist here.
What remains, such as a long comparison in a long loop, meets a limit of processor time.
"""

from __future__ import annotations

import datetime
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NoReturn

from jinja2 import Environment, nodes, pass_environment
from jinja2 import TemplateError as JinjaError
from jinja2.ext import Extension
from jinja2.filters import make_attrgetter
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_STEPS = 100_000  # iterations of loops, calls of macros and entries of literals in one rendering
MAX_SECONDS = 1.0  # of processor time in one rendering; published templates take milliseconds
MAX_TEXT = 1 << 22  # characters of any string that a template makes
MAX_ITEMS = 1 << 17  # entries of any list that a template makes

# Widths in a format string of five digits, or given by another value.
_WIDE = re.compile(r"%[^a-zA-Z%]*(\*|\d{5})|\{[^{}]*(\{|:[^{}]*\d{5})")

_FILTERS = """
    abs attr capitalize count d default dictsort e escape first float format groupby indent int items join
    last length list lower map max min reject rejectattr replace reverse round safe select selectattr sort
    string title tojson trim truncate unique upper wordcount
"""

# Steps taken in this rendering, and the processor time at which it must be over.
_spent: ContextVar[tuple[int, float]] = ContextVar("pocketlm_template_spent", default=(0, float("inf")))


@contextmanager
def limited() -> Iterator[None]:
    """One rendering, whose steps and time count from here."""
    token = _spent.set((0, time.thread_time() + MAX_SECONDS))
    try:
        yield
    finally:
        _spent.reset(token)


def spend(steps: int = 1) -> None:
    """Counts steps of the rendering.

    Raises:
        jinja2.TemplateError: there are too many of them, or they took too long.
    """
    taken, end = _spent.get()
    if taken + steps > MAX_STEPS:
        raise JinjaError(f"takes more than {MAX_STEPS} steps")
    if time.thread_time() > end:
        raise JinjaError(f"takes more than {MAX_SECONDS:g} seconds")
    _spent.set((taken + steps, end))


class TemplateSandbox(ImmutableSandboxedEnvironment):
    """A Jinja environment for code from a stranger. Compile what :func:`count_steps` returns."""

    # Operators that can turn a short template into a giant string or number.
    intercepted_binops = frozenset({"+", "*", "**", "%"})
    _wide_methods = frozenset({"center", "ljust", "rjust", "zfill", "expandtabs", "format_map", "translate"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
        )
        self.filters = {name: self.filters[name] for name in _FILTERS.split()}
        self.filters["tojson"] = _to_json
        for name in ("indent", "replace", "format"):
            self.filters[name] = _bounded_filter(self.filters[name])
        del self.globals["lipsum"]
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)

        self.filters["join"] = _join

    @staticmethod
    def concat(parts: Iterable[str]) -> str:
        """Joins what a block, a macro or a ``set`` block printed."""
        return _join_bounded("", parts)

    def tick(self) -> str:
        spend()
        return ""

    def made(self, value: Any) -> Any:
        """A list, tuple or mapping that the template makes, with all its entries counted: nested in one
        another, a few of them would print as terabytes."""
        waiting = [value]
        while waiting:
            one = waiting.pop()
            inner = one.values() if isinstance(one, dict) else one if isinstance(one, list | tuple) else ()
            spend(1 + len(inner))
            waiting.extend(v for v in inner if isinstance(v, dict | list | tuple))
        return value

    def concat_bounded(self, *parts: Any) -> str:
        return _join_bounded("", map(str, parts))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "**":
            raise JinjaError("the operator '**' is not allowed here")
        if operator == "%" and isinstance(left, str):
            _check_format(left)
        if operator == "*":
            sizes = [len(v) if isinstance(v, str | bytes | list | tuple) else v for v in (left, right)]
            most = (
                MAX_ITEMS if isinstance(left, list | tuple) or isinstance(right, list | tuple) else MAX_TEXT
            )
            if all(isinstance(v, int) for v in sizes) and abs(sizes[0] * sizes[1]) > most:
                raise JinjaError("a product is too large")
        spend()
        result = _checked(super().call_binop(context, operator, left, right))
        return self.made(result) if isinstance(result, list | tuple) else result

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        owner = getattr(value, "__self__", None)
        if isinstance(owner, str) and getattr(value, "__name__", "") in ("format", "format_map"):
            _check_format(owner)
        return super().wrap_str_format(value)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, str | bytes) and attr in self._wide_methods:
            return False
        return super().is_safe_attribute(obj, attr, value)

    def call(self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        spend()
        owner, name = getattr(__obj, "__self__", None), getattr(__obj, "__name__", "")
        if isinstance(owner, str):
            if name == "replace" and len(args) > 1:
                _check_replace(owner, *args)
            if name == "join" and args:
                return _join_bounded(owner, args[0])
        return _checked(super().call(__context, __obj, *args, **kwargs))


class _Generation(Extension):
    """The ``{% generation %}`` block, which marks an assistant's words for training; here it is its body."""

    tags = {"generation"}  # noqa: RUF012  (the base class declares it so)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def count_steps(tree: nodes.Template) -> nodes.Template:
    """The same template, counting its steps and bounding what it makes."""

    # Every pass of a loop and every call of a macro goes through Environment.tick, every list or mapping
    # through made, and every `~` through concat_bounded.
    def call(name: str, *args: nodes.Expr) -> nodes.Expr:
        return nodes.Call(nodes.EnvironmentAttribute(name), list(args), [], None, None)

    def change(node: nodes.Node) -> nodes.Node:
        if isinstance(node, nodes.Concat):
            return call("concat_bounded", *node.nodes)
        literal = isinstance(node, nodes.List | nodes.Dict | nodes.Tuple)
        arguments = isinstance(node, nodes.Name) and node.name in ("varargs", "kwargs")
        if isinstance(node, nodes.Expr) and (literal or arguments) and getattr(node, "ctx", "load") == "load":
            return call("made", node)
        return node

    node: nodes.For | nodes.Macro | nodes.CallBlock
    for node in tree.find_all((nodes.For, nodes.Macro, nodes.CallBlock)):  # type: ignore[assignment]
        node.body.insert(0, nodes.ExprStmt(call("tick")))
    _rewrite(tree, change)
    if tree.environment is not None:
        tree.set_environment(tree.environment)
    return tree


def _rewrite(node: nodes.Node, change: Callable[[nodes.Node], nodes.Node]) -> None:
    for field, value in node.iter_fields():
        items = value if isinstance(value, list) else [value]
        for index, item in enumerate(items):
            if not isinstance(item, nodes.Node):
                continue
            _rewrite(item, change)
            fresh = change(item)
            if fresh is not item:
                if isinstance(value, list):
                    value[index] = fresh
                else:
                    setattr(node, field, fresh)


def _checked(value: Any) -> Any:
    if isinstance(value, str | bytes) and len(value) > MAX_TEXT:
        raise JinjaError(f"makes more than {MAX_TEXT} characters")
    if isinstance(value, list | tuple) and len(value) > MAX_ITEMS:
        raise JinjaError(f"makes a list of more than {MAX_ITEMS} entries")
    return value


def _join_bounded(separator: str, parts: Iterable[str]) -> str:
    collected: list[str] = []
    size = 0
    for part in parts:
        size += len(part) + len(separator)
        if size > MAX_TEXT:
            raise JinjaError(f"makes more than {MAX_TEXT} characters")
        collected.append(part)
    return separator.join(collected)


@pass_environment
def _join(
    environment: Environment, value: Iterable[Any], d: str = "", attribute: str | int | None = None
) -> str:
    items = value if attribute is None else map(make_attrgetter(environment, attribute), value)
    return _join_bounded(str(d), (str(item) for item in items))


def _check_format(text: str) -> None:
    if _WIDE.search(text.replace("{{", "")):
        raise JinjaError("a width is too large")


def _check_replace(text: str, old: Any, new: Any, *_: Any) -> None:
    if len(text) + text.count(str(old)) * len(str(new)) > MAX_TEXT:
        raise JinjaError(f"makes more than {MAX_TEXT} characters")


def _bounded_filter(inner: Callable[..., Any]) -> Callable[..., Any]:
    # Filters keep their marks (pass_eval_context and the like) through __dict__.
    def bounded(*args: Any, **kwargs: Any) -> Any:
        values = [*args, *kwargs.values()]
        if any(isinstance(v, int) and abs(v) > 4096 for v in values):
            raise JinjaError("a width is too large")
        texts = [v for v in values if isinstance(v, str)]
        numbers = [v for v in values if isinstance(v, int)]
        if inner.__name__ == "do_indent" and texts:
            # By a number of spaces or by a text.
            width = max([4, *numbers, *map(len, texts[1:])])
            if len(texts[0]) + (texts[0].count("\n") + 1) * width > MAX_TEXT:
                raise JinjaError(f"makes more than {MAX_TEXT} characters")
        if inner.__name__ == "do_replace" and len(texts) >= 3:
            _check_replace(*texts[:3])
        if inner.__name__ == "do_format" and texts:
            _check_format(texts[0])
        return _checked(inner(*args, **kwargs))

    bounded.__dict__.update(inner.__dict__)
    return bounded


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    if indent is not None and not 0 <= indent <= 16:
        raise JinjaError("tojson: indent must be from 0 to 16")
    allowed = {key: options.pop(key) for key in ("separators", "sort_keys") if key in options}
    if options:
        raise JinjaError(f"tojson: unknown option {next(iter(options))!r}")
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **allowed)


def _raise_exception(message: Any) -> NoReturn:
    raise JinjaError(str(message))
