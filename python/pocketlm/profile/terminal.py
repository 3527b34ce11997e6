"""A profile for the terminal: 80 columns."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table as Grid
from rich.text import Text

from pocketlm.cli.common import human
from pocketlm.profile.profile import Profile, Total
from pocketlm.profile.rows import Row, Table, check_step

GROUPS = ("site", "layer", "op")
_LEAST_NAME, _MOST_NAME = 12, 26  # characters
_FEWEST_STEPS = 3  # of fewer, quartiles tell nothing


@dataclasses.dataclass(frozen=True)
class Line:
    """Some rows as one."""

    name: str
    kinds: tuple[str, ...]
    bits: float | None
    bytes: int
    macs: int
    seconds: float
    spread: float
    share: float
    bound: str


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


def _line(name: str, rows: list[Row], step: str) -> Line:
    costs = [row.cost(step) for row in rows]
    weights = [row for row in rows if row.shape and row.op == "linear"]
    elements = sum(row.shape[0] * row.shape[1] for row in weights if row.shape)
    slowest = max(rows, key=lambda row: row.cost(step).roof_seconds)
    return Line(
        name=name,
        kinds=tuple(dict.fromkeys(row.kind for row in rows if row.kind)),
        bits=8 * sum(row.weight_bytes for row in weights) / elements if elements else None,
        bytes=sum(cost.bytes for cost in costs),
        macs=sum(cost.macs for cost in costs),
        seconds=sum(cost.seconds for cost in costs),
        # Rows are measured in the same steps, but wander by themselves.
        spread=sum(cost.spread**2 for cost in costs) ** 0.5,
        share=sum(cost.share for cost in costs),
        bound=slowest.cost(step).bound or "",
    )


_SORTS: dict[str, Callable[[Line], float]] = {
    "time": lambda line: line.seconds,
    "bytes": lambda line: line.bytes,
    "macs": lambda line: line.macs,
    "bits": lambda line: line.bits or 0,
    "rate": lambda line: line.bytes / line.seconds if line.seconds else 0,
    "energy": lambda line: line.seconds,
}


def render(
    profile: Profile,
    rows: Table,
    *,
    step: str = "decode",
    by: str = "site",
    sort: str = "time",
    top: int | None = None,
    width: int = 80,
) -> RenderableType:
    """A table of some rows, with their sum, for a terminal of so many columns."""
    found = lines(rows, by, step)
    if sort in _SORTS:
        found.sort(key=_SORTS[sort], reverse=True)
    elif sort == "name":
        found.sort(key=lambda line: line.name)
    shown = found[:top]
    unit, scale = ("ms", 1e3) if profile.total(step).seconds > 0.02 else ("µs", 1e6)
    spread = profile.total(step).steps >= _FEWEST_STEPS
    titles = ("kind", "bits", "bytes", unit, "±", "GB/s", "of mem", "share", "bound")
    cells = [_cells(profile, line, scale, spread) for line in [*shown, _sum(found)]]
    others = [max(map(len, column)) for column in zip(titles, *(rest for _, *rest in cells), strict=True)]
    # Figures are shown whole: where there is no room for all, names give way.
    name_width = max(_LEAST_NAME, min(_MOST_NAME, width - sum(others) - len(others)))
    grid = Grid(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    grid.add_column(step, no_wrap=True, overflow="ellipsis", max_width=name_width)
    for title, most in zip(titles, others, strict=True):
        left = title in ("kind", "bound")
        grid.add_column(title, justify="left" if left else "right", no_wrap=True, min_width=most)
    for name, *rest in cells:
        grid.add_row(escape(name), *rest, style="bold" if name == "sum" else None)
    hidden = len(found) - len(shown)
    parts: list[RenderableType] = [grid]
    if hidden:
        parts.append(Text(f"and {hidden} more (--top)", style="dim"))
    return Group(*parts)


def _cells(profile: Profile, line: Line, scale: float, spread: bool) -> tuple[str, ...]:
    """A line as text, column by column."""
    rate = line.bytes / line.seconds if line.seconds else 0.0
    return (
        line.name,
        line.kinds[0] if len(line.kinds) == 1 else "mixed" if line.kinds else "",
        f"{line.bits:.2f}" if line.bits else "",
        human(line.bytes) if line.bytes else "",
        _figure(scale * line.seconds, 3),
        _figure(scale * line.spread, 2) if spread else "",
        f"{rate / 1e9:.{1 if rate < 1e11 else 0}f}" if line.bytes else "",
        f"{rate / profile.machine.read_bandwidth:.0%}" if line.bytes else "",
        f"{line.share:.1%}",
        line.bound,
    )


def _figure(value: float, digits: int) -> str:
    """A number in few characters."""
    if 0 < value < 0.01:
        return "<0.01"
    return f"{value:.{digits}g}" if value < 10**digits else f"{value:.0f}"


def notes(profile: Profile, rows: Table, steps: Iterable[str]) -> list[str]:
    """What the tables of some steps need to be understood."""
    said = []
    if any(profile.total(step).steps >= _FEWEST_STEPS for step in steps):
        said.append("±: distance of the quartiles over all steps; times: the fastest quarter's mean")
    if any(row.cost(step).bandwidth_share > 1 for step in steps for row in rows):
        said.append("more than 100 % of mem: the processor's caches hold the data, not the memory")
    return said


def _sum(found: list[Line]) -> Line:
    return Line(
        name="sum",
        kinds=(),
        bits=None,
        bytes=sum(line.bytes for line in found),
        macs=sum(line.macs for line in found),
        seconds=sum(line.seconds for line in found),
        spread=sum(line.spread**2 for line in found) ** 0.5,
        share=sum(line.share for line in found),
        bound="",
    )


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
    spread = f" ± {1e3 * total.spread:.2g}" if total.steps >= _FEWEST_STEPS else ""
    return (
        f"{name:<8} {total.tokens_per_second:,.0f} tokens/s {what} on {_threads(total.threads)}: "
        f"{1e3 * total.seconds:.3g} ms"
        f"{spread}, {1e3 * total.joules / total.tokens:.3g} mJ a token; timing adds "
        + (f"{total.timing_cost:.1%}" if total.timing_cost >= 5e-4 else "nothing that shows")
    )
