"""The methods of strings that a template can call, bounded in what they make and how long they take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jinja2 import TemplateError as JinjaError

from pocketlm.sandbox.limits import MAX_ITEMS, bounded, joined

# Not here: padding and `translate`, which make much of little, and `encode`, as nothing watches over bytes.
_NAMES = """
    capitalize casefold count endswith find format index isalnum isalpha isascii isdecimal isdigit
    isidentifier islower isnumeric isprintable isspace istitle isupper join lower lstrip partition
    removeprefix removesuffix replace rfind rindex rpartition rsplit rstrip split splitlines startswith
    strip swapcase title upper
"""
ALLOWED = frozenset(_NAMES.split())
# Those that compare every place of the string with all of the other one.
_SEARCHES = frozenset({"strip", "lstrip", "rstrip", "rfind", "rindex", "rsplit", "rpartition"})
_BREAKS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"


def check_search(owner: str, other: Any) -> None:
    """Refuses a search in ``owner`` whose time grows with both lengths."""
    if isinstance(other, str) and len(owner) * len(other) > 1 << 27:
        raise JinjaError("a search is too long")


def check_replace(owner: str, old: Any, new: Any) -> None:
    """Refuses a replacement whose result is too long."""
    if isinstance(old, str) and isinstance(new, str):
        bounded(len(owner) + owner.count(old) * len(new))


def count_lines(owner: str) -> int:
    return 1 + sum(owner.count(line_break) for line_break in _BREAKS)


def call_method(method: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Calls the method of a string."""
    owner: str = method.__self__  # type: ignore[attr-defined]
    name = method.__name__
    if name in _SEARCHES:
        for value in (*args, *kwargs.values()):
            check_search(owner, value)
    if name == "replace" and len(args) > 1:
        check_replace(owner, *args[:2])
    elif name == "join" and len(args) == 1:
        return joined(owner, args[0])
    elif name in ("split", "rsplit"):
        # One part more than a list may have is enough to refuse it.
        most = args[1] if len(args) > 1 else kwargs.pop("maxsplit", -1)
        kwargs = {"maxsplit": most if 0 <= most <= MAX_ITEMS else MAX_ITEMS, **kwargs}
        return method(*args[:1], **kwargs)
    elif name == "splitlines" and count_lines(owner) > MAX_ITEMS:
        raise JinjaError(f"makes a list of more than {MAX_ITEMS} entries")
    return method(*args, **kwargs)
