"""What a template may spend, and how large the values that it makes may be."""

from __future__ import annotations

import time
from collections.abc import ItemsView, Iterable, Iterator, KeysView, ValuesView
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from jinja2 import TemplateError as JinjaError
from jinja2.runtime import Macro

MAX_STEPS = 100_000  # iterations of loops, calls and entries of literals in one rendering
MAX_SECONDS = 1.0  # of processor time in one rendering; published templates take milliseconds
MAX_TEXT = 1 << 22  # characters of any string that a template makes
MAX_ITEMS = 1 << 17  # entries of any list that a template makes, with those of the lists in it
MAX_BYTES = 1 << 27  # of everything that one rendering makes, and of what one list or mapping refers to
MAX_BITS = 1 << 12  # of any integer that a template makes

ENTRY = 16  # bytes that an entry of a list is counted as, and characters that a number prints as
_CONTAINERS = (dict, list, tuple, set, frozenset, KeysView, ValuesView, ItemsView)

# Steps taken and bytes made in this rendering, and the processor time at which it must be over.
_spent: ContextVar[tuple[int, int, float]] = ContextVar(
    "pocketlm_template_spent", default=(0, 0, float("inf"))
)


@contextmanager
def limited() -> Iterator[None]:
    """One compilation or rendering, whose steps, bytes and time count from here."""
    token = _spent.set((0, 0, time.thread_time() + MAX_SECONDS))
    try:
        yield
    finally:
        _spent.reset(token)


def spend(steps: int = 1, size: int = 0) -> None:
    """Counts steps of the rendering and bytes that it makes.

    Raises:
        jinja2.TemplateError: there are too many of them, or they took too long.
    """
    taken, made, end = _spent.get()
    taken, made = taken + steps, made + size
    if taken > MAX_STEPS:
        raise JinjaError(f"takes more than {MAX_STEPS} steps")
    if made > MAX_BYTES:
        raise JinjaError(f"makes more than {MAX_BYTES} bytes")
    if time.thread_time() > end:
        raise JinjaError(f"takes more than {MAX_SECONDS:g} seconds")
    _spent.set((taken, made, end))


def bounded(size: int) -> None:
    """Refuses a string of more than ``MAX_TEXT`` characters."""
    if size > MAX_TEXT:
        raise JinjaError(f"makes more than {MAX_TEXT} characters")


def measure(value: Any, indent: int = 0) -> int:
    """About as many characters as ``value`` prints as, each entry ``indent`` further to the right than what
    it is in: nested in one another, a few short lists would print as terabytes, and take as long to compare.

    Raises:
        jinja2.TemplateError: there are too many entries or characters.
    """
    spend(0)
    size = entries = 0
    waiting = [(value, 0)]
    while waiting:
        one, depth = waiting.pop()
        size += ENTRY + indent * depth
        if isinstance(one, str):
            size += len(one)
        elif isinstance(one, int):
            size += one.bit_length() // 3
        elif isinstance(one, Macro):
            size += len(one.name)
        elif isinstance(one, _CONTAINERS):
            entries += len(one)
            if entries > MAX_ITEMS:
                raise JinjaError(f"makes a list of more than {MAX_ITEMS} entries")
            for inner in one.values() if isinstance(one, dict) else one:
                if type(inner) is str:
                    size += ENTRY + indent * (depth + 1) + len(inner)
                else:
                    waiting.append((inner, depth + 1))
            if isinstance(one, dict):
                size += sum(len(key) if isinstance(key, str) else measure(key) for key in one)
        if size > MAX_BYTES:
            raise JinjaError(f"makes a list of more than {MAX_BYTES} characters")
    return size


def made(value: Any) -> Any:
    """``value``, which an operation made, counted.

    Raises:
        jinja2.TemplateError: it is too large.
    """
    if isinstance(value, str):
        bounded(len(value))
        spend(0, len(value) * (1 if value.isascii() else 4))
    elif isinstance(value, int):
        if value.bit_length() > MAX_BITS:
            raise JinjaError(f"makes a number of more than {MAX_BITS} bits")
    elif isinstance(value, _CONTAINERS):
        spend(0, ENTRY * len(value))
        measure(value)
    return value


def text(value: Any) -> str:
    """``str(value)``, refused before it is made if it would be too large."""
    if isinstance(value, str):
        return value
    bounded(measure(value))
    printed: str = made(str(value))
    return printed


def joined(separator: str, parts: Iterable[str]) -> str:
    """``separator.join(parts)``, with as many of the parts as the result may hold."""
    collected: list[str] = []
    size = 0
    for part in parts:
        size += len(part) + len(separator)
        bounded(size)
        spend(0)
        collected.append(part)
    result: str = made(separator.join(collected))
    return result


def each(items: Iterable[Any]) -> Iterator[Any]:
    """The entries of ``items``, counted one by one: one call of a filter can go through all of them."""
    for count, item in enumerate(items):
        if count >= MAX_ITEMS:
            raise JinjaError(f"goes through more than {MAX_ITEMS} entries")
        spend(0, ENTRY)
        yield item
