"""The picture of ``benches/quality.py``: bits per weight, everything counted, against what was lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benches.quality_report import Report
from benches.report import COLORS, OTHER_COLORS

MOST_BITS = 12  # the source itself is not shown
MATCHED = "all"  # begins the name of a form that stands beside one of llama.cpp's types: not written out
SERIES = {
    "llama.cpp": (OTHER_COLORS[0], "s", 5),
    "pocketlm": (COLORS["pocketlm"], "o", -10),
    "pocketlm, with recovery": ("#2563eb", "D", -10),
}


def series(row: Any) -> str:
    """Which line a form belongs to."""
    learned = row.side == "pocketlm" and ("recover" in row.name or "bundled" in row.name)
    return "pocketlm, with recovery" if learned else str(row.side)


def draw(report: Report, title: str, path: Path) -> bool:
    """Writes the picture; whether there was a form to show.

    A column for each text. Above perplexity, as what it is above the source's, since the rest is the same for
    all; below the divergence from the source.

    Raises:
        ImportError: matplotlib is not installed.
    """
    if not _shown(report):
        return False
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    columns = len(report.parts)
    figure, axes = plt.subplots(2, columns, figsize=(6.2 * columns, 8.4), squeeze=False, sharex=True)
    for column, text in enumerate(report.parts):
        upper, lower = axes[0][column], axes[1][column]
        source = report.perplexity(report.rows[0], text).value
        losses = _perplexities(report, text)
        _points(upper, report, losses)
        _points(lower, report, {id(row): report.divergence(row, text) for row in report.rows})
        # Where damage happens to help, a logarithm has no place for it.
        if min(losses[id(row)].value for row in _shown(report)) > 0:
            upper.set_yscale("log")
        else:
            upper.set_yscale("symlog", linthresh=0.5)
            upper.axhline(0, color="#888888", linewidth=0.6)
        upper.yaxis.set_major_formatter(lambda value, _: f"{value:g} %")
        upper.set_ylabel(f"perplexity above the source's {source:.2f}", fontsize=8)
        upper.set_title(text, fontsize=9)
        lower.set_yscale("log")
        lower.set_ylabel("KL(source || form), nats per token", fontsize=8)
        lower.set_xlabel("bits per weight, everything counted", fontsize=8)
        for axis in (upper, lower):
            axis.tick_params(labelsize=7, which="both")
            axis.legend(fontsize=7, frameon=False)
            axis.grid(alpha=0.25, linewidth=0.5)
            axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return True


def _shown(report: Report) -> list[Any]:
    return sorted((row for row in report.rows if row.bits_all < MOST_BITS), key=lambda row: row.bits_all)


def _perplexities(report: Report, text: str) -> dict[int, Any]:
    """Percent above the source's, by row."""
    found = {}
    for row in report.rows:
        ratio = report.ratio(row, report.rows[0], text)
        found[id(row)] = type(ratio)(100 * (ratio.value - 1), None if ratio.se is None else 100 * ratio.se)
    return found


def _points(axis: Any, report: Report, figures: dict[int, Any]) -> None:
    """Every form with its standard error, and a line along those of its series that no other beats."""
    for name, (color, marker, place) in SERIES.items():
        edge: list[tuple[float, float]] = []
        for index, row in enumerate(row for row in _shown(report) if series(row) == name):
            found = figures[id(row)]
            axis.errorbar(row.bits_all, found.value, found.se or 0.0, color=color, elinewidth=0.8)
            axis.plot(row.bits_all, found.value, color=color, marker=marker, markersize=4, linestyle="")
            if not row.name.startswith(MATCHED):
                label, at = row.name.partition(",")[0], (row.bits_all, found.value)
                beside = 4, place * (1 + index % 2)  # those of neighbours at two heights
                axis.annotate(label, at, xytext=beside, textcoords="offset points", fontsize=6.5, color=color)
            if not edge or found.value < edge[-1][1]:
                edge.append((row.bits_all, found.value))
        if edge:
            axis.plot(
                *zip(*edge, strict=True), color=color, marker=marker, markersize=4, linewidth=1, label=name
            )
