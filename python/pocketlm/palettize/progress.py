"""A progress bar that knows rows of tensors."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType

from pocketlm.bar import Bar

_SCALED = 10_000  # counts from which on a figure of three digits is shown


def _amount(total: int) -> str:
    return str(Bar.format_sizeof(total)) if total >= _SCALED else f"{total:,}"


class Progress:
    """A bar on standard error that counts to ``total``, or a line where that is no terminal: a log then tells
    which stage it stands at. Nothing unless ``shown``. What is gone through several ``times`` the bar counts
    as often, and the line once. The line goes on with what is ``told`` of the stage, and stands above the bar
    too if anything is: the bar has no room for it."""

    def __init__(
        self, title: str, total: int, shown: bool, unit: str, *, times: int = 1, told: str = ""
    ) -> None:
        watched = sys.stderr is not None and (sys.stderr.isatty() or "ipykernel" in sys.modules)
        if shown and (told or not watched) and sys.stderr is not None:
            with suppress(OSError, ValueError):  # nobody reads it any more: no reason to stop
                print(f"{title}: {_amount(total)} {unit}{told}", file=sys.stderr, flush=True)
        self._bar = Bar(
            total=total * times,
            desc=title,
            unit=f" {unit}",
            unit_scale=total * times >= _SCALED,
            disable=not (shown and watched),
            leave=False,
            dynamic_ncols=True,
        )

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

    def add(self, amount: int) -> None:
        """Counts ``amount`` more."""
        self._bar.update(amount)

    def note(self, text: str) -> None:
        """Shows ``text`` behind the bar."""
        self._bar.set_postfix_str(text, refresh=False)

    def rows(self, width: int) -> Callable[[int], None]:
        """A callback for the rows done so far of a tensor with ``width`` columns."""
        seen = 0

        def tell(rows: int) -> None:
            nonlocal seen
            self._bar.update((rows - seen) * width)
            seen = rows

        return tell
