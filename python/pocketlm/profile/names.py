"""The operations of a model by name: what patterns of filters and what-ifs match, before anything is
measured and after it."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from pocketlm._core import WeightStore
from pocketlm.adapters.attach import is_adapter
from pocketlm.errors import ParameterError
from pocketlm.graph import Graph, Op
from pocketlm.near import nearest
from pocketlm.profile.measure import DISPATCH, SAMPLE
from pocketlm.profile.work import matrix


class Named(Protocol):
    """What patterns look at: a row of a profile, or an :class:`Operation`."""

    @property
    def name(self) -> str: ...
    @property
    def site(self) -> str: ...
    @property
    def op(self) -> str: ...
    @property
    def tensor(self) -> str | None: ...


AnyNamed = TypeVar("AnyNamed", bound=Named)


@dataclass(frozen=True)
class Operation:
    """An operation as :class:`~pocketlm.profile.rows.Row` names it; ``choice`` says whether its matrix can
    have another kind."""

    name: str
    site: str
    op: str
    tensor: str | None
    choice: bool


def operations(graph: Graph, store: WeightStore) -> list[Operation]:
    """Those of a model, in the order of a profile's rows."""
    found = []
    for op in graph.ops:
        info = matrix(store, op)
        tensor = info.name if info else None
        found.append(Operation(op.name, place(op.name)[1], op.kind, tensor, has_choice(op, tensor)))
    return found + [Operation(name, name, name, None, False) for name in (SAMPLE, DISPATCH)]


def has_choice(op: Op, tensor: str | None) -> bool:
    """Whether an operation's matrix, if it has one, can have another kind: not where it is an adapter's."""
    return tensor is not None and op.kind in ("linear", "embed") and not is_adapter(op)


def place(name: str) -> tuple[int | None, str]:
    """Layer and site of an operation's name."""
    found = re.match(r"layers\.(\d+)\.(.+)$", name)
    return (int(found[1]), found[2]) if found else (None, name)


def matching(pattern: str, rows: Iterable[AnyNamed], source: str = "") -> list[AnyNamed]:
    """The rows whose name, site or tensor a pattern with ``*``, ``?`` and ``[...]`` matches.

    Raises:
        ParameterError: there is none; names ``source``, where the pattern is from, and what is near.
    """
    some = list(rows)
    found = [
        row
        for row in some
        if any(fnmatch.fnmatchcase(name, pattern) for name in (row.name, row.site, row.tensor or ""))
    ]
    if not found:
        hint = nearest(pattern, [row.name for row in some], [row.tensor for row in some if row.tensor])
        where = f"{source}: " if source else ""
        raise ParameterError(f"{where}{pattern!r:.200} matches no operation of this model{hint}")
    return found


def with_choice(
    pattern: str, kind: str, rows: Sequence[AnyNamed], choices: Container[str], source: str = ""
) -> list[AnyNamed]:
    """The rows that a pattern matches and that are among ``choices``, by name: those that can be ``kind``.

    Raises:
        ParameterError: there is none; names ``source`` and the pattern.
    """
    rows = matching(pattern, rows, source)
    found = [row for row in rows if row.name in choices]
    if not found:
        where = f"{source}: " if source else ""
        what = f"{rows[0].name} is of kind {rows[0].op}" if len(rows) == 1 else "it matches neither"
        raise ParameterError(
            f"{where}{pattern!r:.200} cannot be {kind}: only projections and embeddings can; {what}"
        )
    return found
