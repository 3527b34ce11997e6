"""The sandbox of chat templates: Jinja as published templates expect it, with bounds on what it can spend.

Loops and macros are counted, and no operator, filter or method makes a string or a list beyond a limit.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from typing import Any, NoReturn

from jinja2 import Environment, nodes, pass_environment
from jinja2 import TemplateError as JinjaError
from jinja2.ext import Extension
from jinja2.filters import make_attrgetter
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_STEPS = 200_000  # iterations of loops and calls of macros in one rendering
MAX_TEXT = 1 << 22  # characters of any string that a template makes
MAX_ITEMS = 1 << 17  # entries of any list that a template makes

# Widths in a format string of five digits, or given by another value.
_WIDE = re.compile(r"%[^a-zA-Z%]*(\*|\d{5})|\{[^{}]*(\{|:[^{}]*\d{5})")

steps_taken: ContextVar[int] = ContextVar("pocketlm_template_steps", default=0)


class TemplateSandbox(ImmutableSandboxedEnvironment):
    """A Jinja environment for code from a stranger. Compile what :func:`count_steps` returns."""

    # Operators that can turn a short template into a giant string or number.
    intercepted_binops = frozenset({"+", "*", "**", "%"})
    _wide_methods = frozenset({"center", "ljust", "rjust", "zfill", "expandtabs", "format_map", "translate"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
        )
        self.filters["tojson"] = _to_json
        for name in ("center", "indent", "wordwrap", "replace", "format"):
            self.filters[name] = _bounded_filter(self.filters[name])
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)

        self.filters["join"] = _join

    @staticmethod
    def concat(parts: Iterable[str]) -> str:
        """Joins what a block, a macro or a ``set`` block printed."""
        return _join_bounded("", parts)

    def tick(self) -> str:
        steps = steps_taken.get() + 1
        steps_taken.set(steps)
        if steps > MAX_STEPS:
            raise JinjaError(f"takes more than {MAX_STEPS} steps")
        return ""

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
        return _checked(super().call_binop(context, operator, left, right))

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
    """The same template, counting its steps and bounding what `~` makes."""

    # Every pass of a loop and every call of a macro goes through Environment.tick, and every `~` through
    # concat_bounded.
    def call(name: str, *args: nodes.Expr) -> nodes.Expr:
        return nodes.Call(nodes.EnvironmentAttribute(name), list(args), [], None, None)

    node: nodes.For | nodes.Macro | nodes.CallBlock
    for node in tree.find_all((nodes.For, nodes.Macro, nodes.CallBlock)):  # type: ignore[assignment]
        node.body.insert(0, nodes.ExprStmt(call("tick")))
    _replace_concat(tree, lambda node: call("concat_bounded", *node.nodes))
    if tree.environment is not None:
        tree.set_environment(tree.environment)
    return tree


def _replace_concat(node: nodes.Node, make: Callable[[nodes.Concat], nodes.Expr]) -> None:
    for field, value in node.iter_fields():
        items = value if isinstance(value, list) else [value]
        for index, item in enumerate(items):
            if not isinstance(item, nodes.Node):
                continue
            _replace_concat(item, make)
            if isinstance(item, nodes.Concat):
                fresh = make(item)
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
