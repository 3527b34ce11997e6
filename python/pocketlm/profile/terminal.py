"""A profile for the terminal: as many columns as it has room for."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table as Grid
from rich.text import Text

from pocketlm.cli.common import human
from pocketlm.profile.columns import COLUMNS, FEWEST_STEPS, LEAST_NAME, Scale, fitting, widths
from pocketlm.profile.lines import Line, lines, ordered, total
from pocketlm.profile.profile import Profile, Total
from pocketlm.profile.rows import Table
from pocketlm.profile.whatif import WhatIf


def tables(
    profile: Profile,
    rows: Table,
    steps: Sequence[str] = ("decode", "prefill"),
    *,
    by: str = "site",
    sort: str = "time",
    top: int | None = None,
    width: int = 80,
    columns: Sequence[str] | None = None,
) -> tuple[list[RenderableType], tuple[str, ...]]:
    """A table of some rows for each step, with their sum, for a terminal of ``width`` columns: with those of
    its ``columns``, or with as many as all tables have room for; these are returned too. Figures are shown
    whole: where there is no room for all, names give way."""
    found = {step: ordered(lines(rows, by, step), sort) for step in steps}
    scales = {step: Scale.of(profile, step) for step in steps}
    shown = {step: [*found[step][:top], total(rows, step)] for step in steps}
    if columns is None:
        columns = fitting([(shown[step], scales[step]) for step in steps], width)
    made: list[RenderableType] = []
    for step in steps:
        hidden = len(found[step]) - len(shown[step]) + 1
        grid = _grid(step, shown[step], scales[step], columns, width)
        made.append(Group(grid, Text(f"and {hidden} more (--top)", style="dim")) if hidden else grid)
    return made, tuple(columns)


def _grid(step: str, found: Sequence[Line], scale: Scale, columns: Sequence[str], width: int) -> Grid:
    needed = widths(found, scale)
    room = width - sum(needed[name] for name in columns) - len(columns)
    grid = Grid(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    grid.add_column(step, no_wrap=True, overflow="ellipsis", max_width=max(LEAST_NAME, room))
    for name in columns:
        column = COLUMNS[name]
        title, justify = column.title(scale), "left" if column.left else "right"
        grid.add_column(title, justify=justify, no_wrap=True, min_width=needed[name])  # type: ignore[arg-type]
    for line in found:
        cells = [COLUMNS[name].text(line, scale) for name in columns]
        grid.add_row(escape(line.name), *cells, style="bold" if line is found[-1] else None)
    return grid


def notes(profile: Profile, rows: Table, steps: Iterable[str], columns: Collection[str]) -> list[str]:
    """What the tables of some steps need to be understood."""
    said = []
    if "spread" in columns and any(profile.total(step).steps >= FEWEST_STEPS for step in steps):
        said.append("±: distance of the quartiles over all steps; times: the fastest quarter's mean")
    if "memory" in columns and any(row.cost(step).bandwidth_share > 1 for step in steps for row in rows):
        said.append("more than 100 % of mem: the processor's caches hold the data, not the memory")
    if "roof" in columns:
        said.append("roof: the least time by the machine's two roofs")
    if "kl" in columns:
        said.append("KL: nats a token that these kinds cost by themselves; –: not known of all tensors")
    return said


def prediction(before: WhatIf, then: WhatIf, changes: Iterable[str]) -> list[str]:
    """What other kinds would change."""
    said = [
        f"what if      {', '.join(changes)}",
        f"size         {human(before.bytes)} → {human(then.bytes)}",
        f"bits         {before.bits_per_weight_projections:.2f} → {then.bits_per_weight_projections:.2f} "
        f"({before.bits_per_weight_all:.2f} → {then.bits_per_weight_all:.2f} of everything)",
    ]
    for name in ("decode", "prefill"):
        old, new = (getattr(p, f"{name}_tokens_per_second") for p in (before, then))
        said.append(f"{name:<12} {old:,.0f} → {new:,.0f} tokens/s")
    said.append(
        f"energy       {1e3 * before.joules_per_token:.3g} → {1e3 * then.joules_per_token:.3g} mJ a token"
    )
    said.append(f"divergence   {then.kl_told}")
    if then.kl is None:
        said.append("             (palettize --calibration measures the kinds that it may choose)")
    return said


def heading(profile: Profile) -> list[str]:
    """The figures of the whole."""
    machine, about = profile.machine, profile.description
    return [
        f"{profile.model}: {about.parameters:,} parameters, {human(about.bytes)}, "
        f"{about.bits_per_weight_projections:.2f} bits per weight "
        f"({about.bits_per_weight_all:.2f} of everything)"
        + (f", {human(about.adapter_bytes)} of it the recovery adapter" if about.adapter_bytes else ""),
        f"{machine.processor}, {machine.isa}, {_threads(machine.threads)}: "
        f"memory {human(machine.read_bandwidth)}/s, int8 {machine.int8_peak / 1e9:.0f} GMAC/s",
        _whole("decode", profile.decode, f"after {profile.context} tokens"),
        _whole("prefill", profile.prefill, f"of {profile.prompt} tokens"),
        *_power(profile),
    ]


def _power(profile: Profile) -> list[str]:
    """A line for each power, or one where decoding and prefill have the same."""
    told = {step: f"{energy.watts:.0f} W ({energy.source})" for step, energy in profile.energy.items()}
    if len({*told.values()}) == 1:
        return [f"power    {told['decode']}"]
    return [f"power    {step} {text}" for step, text in told.items()]


def _threads(count: int) -> str:
    return f"{count} thread{'' if count == 1 else 's'}"


def _whole(name: str, total: Total, what: str) -> str:
    spread = f" ± {1e3 * total.spread:.2g}" if total.steps >= FEWEST_STEPS else ""
    return (
        f"{name:<8} {total.tokens_per_second:,.0f} tokens/s {what} on {_threads(total.threads)}: "
        f"{1e3 * total.seconds:.3g} ms"
        f"{spread}, {1e3 * total.joules / total.tokens:.3g} mJ a token; timing adds "
        + (f"{total.timing_cost:.1%}" if total.timing_cost >= 5e-4 else "nothing that shows")
    )
