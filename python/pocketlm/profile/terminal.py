"""A profile for the terminal: as many columns as it has room for."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table as Grid

from pocketlm.abbreviated import LEAST, abbreviated, least_width
from pocketlm.cli.common import human
from pocketlm.kinds import PALETTES
from pocketlm.profile.columns import COLUMNS, FEWEST_STEPS, Scale, digits, figure, fitting, widths
from pocketlm.profile.lines import Line, lines, ordered, tied, total
from pocketlm.profile.profile import Profile, Total
from pocketlm.profile.rows import STEPS, Row, Table
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
    # All of them, to say which layer it is even where only one is shown.
    names = {line.name for step in steps for line in [*found[step], shown[step][-1]]}
    if columns is None:
        columns = fitting([(shown[step], scales[step]) for step in steps], width, least_width(names))
    made: list[RenderableType] = []
    for step in steps:
        hidden = len(found[step]) - len(shown[step]) + 1
        made.append(_grid(step, shown[step], scales[step], columns, names, width, hidden))
    return made, tuple(columns)


def _grid(
    step: str,
    found: Sequence[Line],
    scale: Scale,
    columns: Sequence[str],
    names: Collection[str],
    width: int,
    hidden: int,
) -> Grid:
    needed = widths(found, scale)
    room = width - sum(needed[name] for name in columns) - len(columns)
    grid = Grid(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    short = abbreviated(names, max(LEAST, room))
    grid.add_column(step, no_wrap=True)
    for name in columns:
        column = COLUMNS[name]
        title, justify = column.title(scale), "left" if column.left else "right"
        grid.add_column(title, justify=justify, no_wrap=True, min_width=needed[name])  # type: ignore[arg-type]
    for line in found:
        if hidden and line is found[-1]:
            grid.add_row(f"and {hidden} more", style="dim")  # the sum, which comes next, holds them
        cells = [COLUMNS[name].text(line, scale) for name in columns]
        grid.add_row(escape(short[line.name]), *cells, style="bold" if line is found[-1] else None)
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
        unknown = any(row.tensor and row.sensitivity is None for row in rows)
        dash = "; –: not known of all tensors" if unknown else ""
        said.append(f"KL: nats a token that these kinds cost by themselves{dash}")
        said += [
            f"{' and '.join(names)} are one tensor, whose KL counts once in sums" for names in tied(rows)
        ]
    if "macs" in columns and any(_two_terms(profile, row) for row in rows):
        said.append("MACs of the head count twice: it reads its activations in two terms")
    if "bytes" in columns and any(
        row.op == "attention" and row.cost(step).bytes for step in steps for row in rows
    ):
        said.append("read: bytes of weights, and of the cache that attention reads")
    return said


def _two_terms(profile: Profile, row: Row) -> bool:
    head = profile.graph.head()
    return head is not None and row.name == head.name and row.kind in PALETTES and not profile.precise


def prediction(
    before: WhatIf, then: WhatIf, changes: Iterable[str], steps: Iterable[str] = STEPS
) -> list[str]:
    """What other kinds would change."""
    said = [
        f"what if      {', '.join(changes)}",
        f"size         {human(before.bytes)} → {human(then.bytes)}",
        f"bits         {before.bits_per_weight_projections:.2f} → {then.bits_per_weight_projections:.2f} "
        f"({before.bits_per_weight_all:.2f} → {then.bits_per_weight_all:.2f} of everything)",
    ]
    for name in steps:
        old, new = (getattr(p, f"{name}_tokens_per_second") for p in (before, then))
        said.append(f"{name:<12} {old:,.0f} → {new:,.0f} tokens/s")
    said.append(
        f"energy       {1e3 * before.joules_per_token:.3g} → {1e3 * then.joules_per_token:.3g} mJ a token"
    )
    now = "not known → " if before.kl is None else f"{before.kl:.4f} → "
    said.append(f"divergence   {now if before.kl is not None or then.kl is not None else ''}{then.kl_told}")
    if then.kl is None:
        said.append("             (palettize --calibration measures the kinds that it may choose)")
    return said


def heading(profile: Profile, steps: Sequence[str] = STEPS) -> list[str]:
    """The figures of the whole of some steps."""
    whats = {"decode": f"after {profile.context} tokens", "prefill": f"of {profile.prompt} tokens"}
    machine, about = profile.machine, profile.description
    return [
        f"{profile.model}: {about.parameters:,} parameters, {human(about.bytes)}, "
        f"{about.bits_per_weight_projections:.2f} bits per weight "
        f"({about.bits_per_weight_all:.2f} of everything)"
        + (f", {human(about.adapter_bytes)} of it the recovery adapter" if about.adapter_bytes else ""),
        f"{machine.processor}, {machine.isa}, {_threads(machine.threads)}: "
        f"memory {human(machine.read_bandwidth)}/s, int8 {machine.int8_peak / 1e9:.0f} GMAC/s",
        *(_whole(step, profile.total(step), whats[step]) for step in steps),
        *_power(profile, steps),
        *_others(profile),
    ]


def _power(profile: Profile, steps: Sequence[str]) -> list[str]:
    """One line, unless the steps' power comes from different places."""
    watts = {step: f"{profile.energy[step].watts:.0f} W" for step in steps}
    sources = {step: profile.energy[step].source for step in steps}
    if len({*sources.values()}) > 1:
        return [f"power    {step} {watts[step]} ({sources[step]})" for step in steps]
    same = len({*watts.values()}) == 1
    told = watts[steps[0]] if same else ", ".join(f"{step} {power}" for step, power in watts.items())
    return [f"power    {told} ({sources[steps[0]]})"]


def _others(profile: Profile) -> list[str]:
    share = profile.others_cpu
    return [] if share is None else [f"others   other processes took {share:.0%} of the machine meanwhile"]


def _threads(count: int) -> str:
    return f"{count} thread{'' if count == 1 else 's'}"


def _whole(name: str, total: Total, what: str) -> str:
    known = total.steps >= FEWEST_STEPS
    sure = digits(total.seconds, total.spread) if known else 3
    spread = f" ± {figure(1e3 * total.spread, min(2, sure))}" if known else ""
    return (
        f"{name:<8} {total.tokens_per_second:,.0f} tokens/s {what} on {_threads(total.threads)}: "
        f"{figure(1e3 * total.seconds, sure)} ms"
        f"{spread}, {1e3 * total.joules / total.tokens:.3g} mJ a token; timing adds "
        + (f"{total.timing_cost:.1%}" if total.timing_cost >= 5e-4 else "nothing that shows")
    )
