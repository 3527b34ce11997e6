"""Formats, whose widths can turn a short template into a giant string."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Callable
from typing import Any

from jinja2 import TemplateError as JinjaError
from jinja2.sandbox import SandboxedEscapeFormatter, SandboxedFormatter

from pocketlm.sandbox.limits import bounded, made, measure, spend, text

# A field of `%`: its name, width, precision and kind.
_PERCENT = re.compile(r"%(\([^()]*\))?[-#0 +]*(\*|[0-9]+)?(?:\.(\*|[0-9]+)?)?[hlL]?(.)?", re.DOTALL)
_WIDE = re.compile(r"\d{5}")


def check_percent(form: str, values: Any) -> None:
    """Refuses ``form % values`` where that would be too large."""
    own = measure(values)
    size = len(form) + own
    for field in _PERCENT.finditer(form):
        spend(0)
        name, width, precision, kind = field.groups("")
        if kind == "(":
            raise JinjaError("a name in a format has parentheses in it")
        if "*" in (width, precision) or len(width) > 4 or len(precision) > 4:
            raise JinjaError("a width is too large")
        # Only a field with a name can use a value that another one uses, too.
        size += int(width or 0) + int(precision or 0) + (own if name else 0)
        bounded(size)


class _Formatter(SandboxedFormatter):
    def format_field(self, value: Any, format_spec: str) -> Any:
        if _WIDE.search(format_spec):
            raise JinjaError("a width is too large")
        return made(super().format_field(_printable(value), format_spec))

    def convert_field(self, value: Any, conversion: Any) -> Any:
        return super().convert_field(_printable(value), conversion)


class _EscapeFormatter(_Formatter, SandboxedEscapeFormatter):
    """The one of strings that are marked as safe."""


def _printable(value: Any) -> Any:
    # Also where it is not printed but an attribute of it is named: that one was refused before.
    bounded(measure(value))
    return value


def format_method(environment: Any, form: str) -> Callable[..., str]:
    """``form.format``, whose fields cannot be too large, alone or together."""
    escape = getattr(form, "escape", None)  # of strings that are marked as safe
    formatter = _EscapeFormatter(environment, escape=escape) if escape else _Formatter(environment)

    def format_bounded(*args: Any, **kwargs: Any) -> str:
        result: str = made(type(form)(formatter.vformat(form, args, kwargs)))
        return result

    return format_bounded


def to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    if indent is not None and not 0 <= indent <= 16:
        raise JinjaError("tojson: indent must be from 0 to 16")
    allowed = {key: options.pop(key) for key in ("separators", "sort_keys") if key in options}
    if options:
        raise JinjaError(f"tojson: unknown option {next(iter(options))!r}")
    if any(len(part) > 16 for part in allowed.get("separators") or ()):
        raise JinjaError("tojson: a separator is longer than 16 characters")
    bounded(measure(value, indent or 0))
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **allowed)


def strftime_now(form: str) -> str:
    # The C library takes widths such as in %500000000d, up to 256 times the length of the format.
    if len(form) > 256:
        raise JinjaError("strftime_now: the format is longer than 256 characters")
    return datetime.datetime.now().strftime(form)


def raise_exception(message: Any) -> None:
    raise JinjaError(text(message))
