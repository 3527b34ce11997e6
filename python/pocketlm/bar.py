"""A progress bar that narrow terminals have room for."""

from __future__ import annotations

from typing import Any

from tqdm import tqdm

_WIDE = 76  # characters from which on there is room for tqdm's own figures
_NARROW = "{desc} |{bar}| {n_fmt}/{total_fmt}{of}, {remaining} left{postfix}"


class Bar(tqdm):  # type: ignore[type-arg]
    """As tqdm's, which in 60 columns leaves no room for the bar itself: it has fewer figures there."""

    @property
    def format_dict(self) -> dict[str, Any]:
        """What is shown, and how."""
        found = dict(super().format_dict)
        if (found["ncols"] or _WIDE) < _WIDE:
            # What is noted behind the bar takes the place of the unit.
            found["bar_format"] = _NARROW.replace("{of}", "" if found["postfix"] else "{unit}")
        return found
