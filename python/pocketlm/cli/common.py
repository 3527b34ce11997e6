"""What several commands share: options of the model and of sampling, and output."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import click

from pocketlm.checks import shown

if TYPE_CHECKING:
    from pocketlm.generate.result import Completion
    from pocketlm.model import LM

Function = TypeVar("Function", bound=Callable[..., Any])
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30}


class Bytes(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """A number of bytes, with or without a unit: 500MB, 1.5GiB."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The number of bytes."""
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmg]i?)?b?", str(value).strip().lower())
        if match is None:
            self.fail(f"{shown(value)} is not a size such as 500MB or 1.5GiB", param, ctx)
        size = _whole(match[1], match[2] or "")
        if size > sys.maxsize:
            self.fail(f"{shown(value)} is too large", param, ctx)
        return size


class Tokens(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """A number of tokens, with or without a unit: 500k, 1.5M."""

    name = "tokens"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The number of tokens."""
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([km]?)", str(value).strip().lower())
        if match is None:
            self.fail(f"{shown(value)} is not a number of tokens such as 500k or 1.5M", param, ctx)
        tokens = _whole(match[1], match[2])
        if tokens > sys.maxsize:
            self.fail(f"{shown(value)} is too large", param, ctx)
        return tokens


def _whole(number: str, unit: str) -> int:
    """Digits times a unit, exactly: errors show the number that was given, and a float has an end. Decimal
    reads them, because Fraction and int take a limited number of digits from a text."""
    return int(Fraction(Decimal(number)) * _UNITS[unit])


def options(*decorators: Callable[[Function], Function]) -> Callable[[Function], Function]:
    """Several decorators as one, in the order in which they are to be listed."""

    def decorate(function: Function) -> Function:
        return functools.reduce(lambda inner, decorator: decorator(inner), reversed(decorators), function)

    return decorate


draft_option = click.option(
    "--draft", metavar="MODEL", help="A much smaller model with the same tokens, to guess."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
threads_option = click.option(
    "--threads",
    type=click.IntRange(1),
    metavar="N",
    help="Threads to use.  [default: POCKETLM_THREADS, or as many as measure fastest]",
)
kv_option = click.option(
    "--kv",
    "kv_dtype",
    type=click.Choice(["f16", "int8"]),
    default="f16",
    show_default=True,
    help="How past tokens are kept: int8 takes about half the memory.",
)
recovery_option = click.option(
    "--no-recovery", is_flag=True, help="Leave out the model's accuracy-recovery adapter."
)
runtime_options = options(
    threads_option,
    kv_option,
    recovery_option,
    click.option(
        "--context", type=click.IntRange(1), metavar="N", help="Most tokens of prompt and answer together."
    ),
    click.option("--max-memory", type=Bytes(), metavar="SIZE", help="Most memory to use, such as 2GB."),
    click.option(
        "--precise", is_flag=True, help="Do not round activations to 8 bits: slower, for comparison."
    ),
)


def _stops(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(text_of_argument("--stop", value) for value in values)


sampling_options = options(
    click.option(
        "--max-tokens",
        type=int,
        metavar="N",
        help="Most tokens to generate.  [default: the model's, or what fits, up to 1024]",
    ),
    click.option(
        "--temperature",
        type=float,
        metavar="T",
        help="0 always takes the likeliest word; higher is more surprising.",
    ),
    click.option("--top-k", type=int, metavar="K", help="Choose among the K likeliest tokens only."),
    click.option(
        "--top-p",
        type=float,
        metavar="P",
        help="Choose among the likeliest that together have probability P.",
    ),
    click.option(
        "--min-p", type=float, metavar="P", help="Drop tokens less likely than P times the likeliest."
    ),
    click.option("--repetition-penalty", type=float, metavar="R", help="Above 1 avoids tokens seen before."),
    click.option(
        "--num-speculative-tokens",
        type=int,
        metavar="N",
        help="Most tokens guessed in a step, for speed; 0 for none.  [default: 8]",
    ),
    click.option("--seed", type=int, metavar="S", help="The same seed gives the same text.  [default: any]"),
    click.option(
        "--stop",
        multiple=True,
        callback=_stops,
        metavar="TEXT",
        help="Stop where this text would come; repeatable.",
    ),
)


def adapter_of(no_recovery: bool) -> Literal["recovery"] | None:
    """What ``--no-recovery`` stands for among the arguments of :func:`pocketlm.load`."""
    return None if no_recovery else "recovery"


def open_model(model: str | None, *, no_recovery: bool = False, **settings: Any) -> LM:
    """Loads a model; ``None`` is the bundled one."""
    from pocketlm.assemble import load

    given = {key: value for key, value in settings.items() if value is not None}
    return load(model, adapter=adapter_of(no_recovery), **given)


def chosen(values: dict[str, Any]) -> dict[str, Any]:
    """The options that were given."""
    return {key: value for key, value in values.items() if value is not None and value != ()}


@contextmanager
def text_of_stdin() -> Iterator[None]:
    """Around reading standard input: what is no text there is a :class:`~pocketlm.errors.ParameterError`."""
    try:
        yield
    except UnicodeDecodeError as problem:
        from pocketlm.errors import ParameterError

        raise ParameterError("standard input is not UTF-8 text") from problem


def text_of_argument(name: str, value: str) -> str:
    """An argument that is text, from its bytes: Python took them for what the locale says, and text is UTF-8
    in any. (Paths stay as they are: Python opens them by the same bytes.)

    Raises:
        ParameterError: the bytes are not UTF-8; says so of ``name``.
    """
    try:
        return os.fsencode(value).decode("utf-8")
    except UnicodeError as problem:
        from pocketlm.errors import ParameterError

        raise ParameterError(f"{name} is not UTF-8 text") from problem


def print_json(value: Any) -> None:
    """Writes a value as JSON."""
    click.echo(as_json(value, indent=2))


def as_json(value: Any, indent: int | None = None) -> str:
    """A value as JSON that standard output can hold."""
    unicode = (getattr(sys.stdout, "encoding", None) or "").lower().replace("-", "") == "utf8"
    return json.dumps(value, indent=indent, ensure_ascii=not unicode)


def told_tokens(completion: Completion, context: int) -> str:
    """How many tokens a text has, and what cut it if something did, in a context of so many."""
    count, total = completion.usage.completion_tokens, completion.usage.total_tokens
    if completion.finish_reason != "length":
        return f"{count} tokens"
    if total >= context:
        return f"{count} tokens (the context is full)"
    return f"cut after {count} tokens (--max-tokens)"  # by its default too: the option is what lets more come


def wrapped(lines: Iterable[str], width: int) -> list[str]:
    """Lines for a terminal of ``width`` columns: what goes on in the next one is set in, below the text."""
    found = []
    for line in lines:
        label = re.match(r"(\S+( \S+)*)? {2,}", line)
        indent = " " * min(len(label[0]) if label else 2, width // 2)
        found += textwrap.wrap(
            line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
        )
    return found


def say(line: str) -> None:
    """Writes a line on standard output: wrapped at words in a terminal, whole for whatever else reads it."""
    if sys.stdout.isatty():
        line = "\n".join(wrapped([line], shutil.get_terminal_size().columns))
    click.echo(line)


def human(size: float) -> str:
    """Bytes for people."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(size) < 1000 or unit == "GB":
            break
        size /= 1000
    return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.3g} {unit}"
