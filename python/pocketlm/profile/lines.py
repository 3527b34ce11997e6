"""The rows of a profile as lines of a table: each by itself, or added up by site or by layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

from pocketlm.profile.rows import Row, check_step

GROUPS = ("site", "layer", "op")


@dataclasses.dataclass(frozen=True)
class Line:
    """Some rows as one: sums, where nothing else is said.

    Attributes:
        kinds, shapes: those of its matrices, each once; [outputs, inputs].
        bits: stored bits per weight of its projections together.
        bound: the lower roof for the one that takes longest by the roofs.
        kl: nats per token that the kinds of its tensors cost, each tensor once; ``None`` where one is not
            known.
        has_kinds: whether it has tensors of which that could be known.
    """

    name: str
    kinds: tuple[str, ...]
    shapes: tuple[tuple[int, int], ...]
    bits: float | None
    bytes: int
    macs: int
    seconds: float
    spread: float
    share: float
    roof_seconds: float
    bound: str
    joules: float
    kl: float | None
    has_kinds: bool


def lines(rows: Iterable[Row], by: str, step: str) -> list[Line]:
    """Sums of the rows of each site, each layer, or each operation by itself; in order of execution."""
    check_step(step)
    keys: dict[str, Callable[[Row], str]] = {
        "site": lambda row: ("layers.*." if row.layer is not None else "") + row.site,
        "layer": lambda row: f"layers.{row.layer}" if row.layer is not None else row.site,
        "op": lambda row: row.name,
    }
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(keys[by](row), []).append(row)
    used = {name: group for name, group in groups.items() if any(row.cost(step).share for row in group)}
    return [_line(name, group, step) for name, group in used.items()]


def total(rows: Iterable[Row], step: str) -> Line:
    """The line of them all."""
    found = _line("sum", list(rows), step)
    return dataclasses.replace(found, kinds=(), shapes=(), bits=None, bound="")


def tied(rows: Iterable[Row]) -> list[tuple[str, ...]]:
    """Names of rows that read the same tensor, where several do."""
    readers: dict[str, list[str]] = {}
    for row in rows:
        if row.tensor:
            readers.setdefault(row.tensor, []).append(row.name)
    return [tuple(names) for names in readers.values() if len(names) > 1]


SORTS: dict[str, Callable[[Line], float]] = {
    "time": lambda line: line.seconds,
    "bytes": lambda line: line.bytes,
    "macs": lambda line: line.macs,
    "bits": lambda line: line.bits or 0,
    "rate": lambda line: line.bytes / line.seconds if line.seconds else 0,
    "energy": lambda line: line.joules,
}


def ordered(found: list[Line], sort: str) -> list[Line]:
    """By one of :data:`SORTS`, largest first, by ``name``, or (anything else) as they are."""
    if sort == "name":
        return sorted(found, key=lambda line: line.name)
    return sorted(found, key=SORTS[sort], reverse=True) if sort in SORTS else found


def _line(name: str, rows: list[Row], step: str) -> Line:
    costs = [row.cost(step) for row in rows]
    weights = [row for row in rows if row.shape and row.op == "linear"]
    elements = sum(row.shape[0] * row.shape[1] for row in weights if row.shape)
    slowest = max(costs, key=lambda cost: cost.roof_seconds, default=None)
    losses = {row.tensor: row.sensitivity for row in rows if row.tensor}  # a tied tensor loses once
    known = [loss for loss in losses.values() if loss is not None]
    return Line(
        name=name,
        kinds=tuple(dict.fromkeys(row.kind for row in rows if row.kind)),
        shapes=tuple(dict.fromkeys(row.shape for row in rows if row.shape)),
        bits=8 * sum(row.weight_bytes for row in weights) / elements if elements else None,
        bytes=sum(cost.bytes for cost in costs),
        macs=sum(cost.macs for cost in costs),
        seconds=sum(cost.seconds for cost in costs),
        # Rows are measured in the same steps, but wander by themselves.
        spread=sum(cost.spread**2 for cost in costs) ** 0.5,
        share=sum(cost.share for cost in costs),
        roof_seconds=sum(cost.roof_seconds for cost in costs),
        bound=(slowest.bound if slowest else None) or "",
        joules=sum(cost.joules for cost in costs),
        kl=sum(known) if len(known) == len(losses) else None,
        has_kinds=bool(losses),
    )
