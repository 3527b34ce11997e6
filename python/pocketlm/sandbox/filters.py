"""The filters and tests of chat templates, each with a bound on what it makes and how long it takes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import GeneratorType
from typing import Any

from jinja2 import Environment, pass_environment
from jinja2 import TemplateError as JinjaError
from jinja2.filters import make_attrgetter

from pocketlm.sandbox.formats import check_percent, to_json
from pocketlm.sandbox.limits import bounded, each, joined, made, measure, spend, text
from pocketlm.sandbox.methods import check_replace, check_search, count_lines

_FILTERS = """
    abs attr capitalize count d default dictsort e escape first float format groupby indent int items join
    last length list lower map max min reject rejectattr replace reverse round safe select selectattr sort
    string title tojson trim truncate unique upper
"""
# Those that print their first argument, whatever it is; those that go through it; and those of these that
# compare its entries with one another.
_PRINTING = frozenset({"capitalize", "e", "escape", "format", "indent", "lower", "replace", "safe", "string"})
_PRINTING |= {"title", "trim", "truncate", "upper"}
_COMPARING = frozenset({"groupby", "max", "min", "sort", "unique"})
_ITERATING = _COMPARING | {"list", "map", "reject", "rejectattr", "select", "selectattr"}
_MAX_INDENT = 4096
_MAX_TITLE = 1 << 16  # characters; `title` goes through its text word by word
_MAX_NUMERAL = 1 << 13  # characters of a text that is read as a number


def bounded_filters(defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The filters of chat templates, most of them Jinja's own."""
    own: dict[str, Any] = {"tojson": to_json, "join": _join}
    return {name: _bounded(name, own.get(name, defaults[name])) for name in _FILTERS.split()}


def counted_tests(defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The tests of chat templates: Jinja's own, as steps that ``select`` and its like take."""
    return {name: _bounded("", test) for name, test in defaults.items()}


def _bounded(name: str, inner: Callable[..., Any]) -> Callable[..., Any]:
    # The value that is filtered comes after an environment or context.
    at = 1 if hasattr(inner, "jinja_pass_arg") else 0

    def call(*args: Any, **kwargs: Any) -> Any:
        spend(0)
        before, values = args[:at], list(args[at:])
        if name in _PRINTING:
            values[0] = text(values[0])
        if name in _ITERATING:
            # `map` and its like take nothing at all, such as tools that are none, for an empty list.
            values[0] = each(values[0]) if values[0] else values[0]
        if name in _COMPARING:
            values[0] = list(values[0])
            measure(values[0])
        if name in _CHECKS:
            _CHECKS[name](*values, **kwargs)
        result = inner(*before, *values, **kwargs)
        return each(result) if isinstance(result, GeneratorType) else made(result)

    # Filters keep their marks (pass_eval_context and the like) through __dict__.
    call.__dict__.update(getattr(inner, "__dict__", {}))
    return call


def _check_indent(value: str, width: int | str = 4, *_: Any, **__: Any) -> None:
    # By a number of spaces or by a text.
    if isinstance(width, int) and width > _MAX_INDENT:
        raise JinjaError("a width is too large")
    bounded(len(value) + count_lines(value) * (len(width) if isinstance(width, str) else max(width, 0)))


def _check_replace(value: str, old: Any = "", new: Any = "", *_: Any, **__: Any) -> None:
    check_replace(value, text(old), text(new))


def _check_format(value: str, *args: Any, **kwargs: Any) -> None:
    check_percent(value, kwargs or args)


def _check_trim(value: str, chars: Any = None) -> None:
    check_search(value, chars)


def _check_title(value: str) -> None:
    if len(value) > _MAX_TITLE:
        raise JinjaError(f"title: longer than {_MAX_TITLE} characters")


def _check_number(value: Any, *_: Any, **__: Any) -> None:
    if isinstance(value, str) and len(value) > _MAX_NUMERAL:
        raise JinjaError(f"a number is longer than {_MAX_NUMERAL} characters")


def _check_round(value: Any, precision: Any = 0, method: Any = "common") -> None:
    # Rounding computes ten to this power.
    if not -20 <= precision <= 20:
        raise JinjaError("round: the precision must be from -20 to 20")


_CHECKS: dict[str, Callable[..., None]] = {
    "float": _check_number,
    "format": _check_format,
    "indent": _check_indent,
    "int": _check_number,
    "replace": _check_replace,
    "round": _check_round,
    "title": _check_title,
    "trim": _check_trim,
}


@pass_environment
def _join(
    environment: Environment, value: Iterable[Any], d: str = "", attribute: str | int | None = None
) -> str:
    items = value if attribute is None else map(make_attrgetter(environment, attribute), value)
    return joined(str(text(d)), map(text, items))
