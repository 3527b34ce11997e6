"""Tables and the picture of a comparison."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

Run = Mapping[str, Any]
HIGHER = ("prefill", "decode")
NEIGHBOURS = 3600  # seconds within which two runs of a round saw the same machine
COLORS = {"pocketlm": "#c2410c"}
OTHER_COLORS = ("#475569", "#64748b", "#94a3b8", "#7c8fa6", "#a8b5c4")


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and greatest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def summary(runs: Sequence[Run]) -> dict[str, dict[str, float]]:
    """Median, least and greatest of every figure over a variant's runs."""
    return {key: spread([run["figures"][key] for run in runs]) for key in runs[0]["figures"]}


def ratios(ours: Sequence[Run], theirs: Sequence[Run]) -> dict[str, dict[str, float]]:
    """How many times better ``ours`` is, round by round: of runs that were neighbours in time."""
    found = {run["round"]: run for run in theirs}
    pairs = [(run, found[run["round"]]) for run in ours if run["round"] in found]
    pairs = [(a, b) for a, b in pairs if abs(a["at"] - b["at"]) <= NEIGHBOURS]
    result: dict[str, dict[str, float]] = {}
    for key in ours[0]["figures"] if pairs else []:
        if key not in theirs[0]["figures"] or "share" in key:
            continue
        values = [(a["figures"][key], b["figures"][key]) for a, b in pairs]
        quotients = [a / b if key.startswith(HIGHER) else b / a for a, b in values]
        result[key] = spread(quotients)
    return result


def _keys(tables: Iterable[Mapping[str, object]]) -> list[str]:
    """All figures, in order of appearance: batches, for one, are only run by some."""
    return list(dict.fromkeys(key for found in tables for key in found))


def _cell(key: str, value: Mapping[str, float] | None) -> str:
    if value is None:
        return "-"
    if "share" in key:
        return f"{value['median']:.0%} ({value['min']:.0%} to {value['max']:.0%})"
    scale, digits = (1e6, 0) if key.endswith("_bytes") else (1, 3 if key.endswith("_seconds") else 1)
    middle = value["median"] / scale
    spread = (value["max"] - value["min"]) / value["median"] / 2 if value["median"] else 0
    return f"{middle:,.{digits}f} ±{spread:.0%}"


def ratio(value: Mapping[str, float] | None) -> str:
    return f"{value['median']:.2f} ({value['min']:.2f} to {value['max']:.2f})" if value else "-"


def heading(key: str) -> str:
    """A column's title with its unit."""
    name = key.replace("_", " ")
    if key.startswith(HIGHER):
        return f"{name}, tok/s"
    return name.replace(" seconds", ", s").replace(" bytes", ", MB")


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def text(results: Mapping[str, Sequence[Run]], baseline: str) -> str:
    """Figures of every variant, then ratios of pocketlm's variants to the others'."""
    summaries = {name: summary(runs) for name, runs in results.items()}
    keys = _keys(summaries.values())
    rows = [[name, *(_cell(key, values.get(key)) for key in keys)] for name, values in summaries.items()]
    parts = [table(["runtime", *map(heading, keys)], rows)]
    pairs = [(a, b) for a in results if a.startswith(baseline) for b in results if not b.startswith(baseline)]
    # Those that never ran as neighbours have no ratio.
    compared = {f"{a} : {b}": found for a, b in pairs if (found := ratios(results[a], results[b]))}
    if compared:
        keys = _keys(compared.values())
        rows = [[name, *(ratio(found.get(key)) for key in keys)] for name, found in compared.items()]
        columns = ["times better", *(key.replace("_", " ").removesuffix(" seconds") for key in keys)]
        parts.append(table(columns, rows))
    return "\n\n".join(parts)


def picture(results: Mapping[str, Sequence[Run]], title: str, path: Path) -> None:
    """Bars of the speeds, one panel for each, with the spread of the runs."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    summaries = {name: summary(runs) for name, runs in results.items()}
    keys = [key for key in _keys(summaries.values()) if key.startswith(HIGHER)]
    keys = keys or ["load_to_first_token_seconds", "peak_bytes"]
    height = 0.9 + 0.32 * len(summaries)
    figure, axes = plt.subplots(
        1, len(keys), figsize=(2.6 * len(keys) + 1.2, height), sharey=True, squeeze=False
    )
    names = list(summaries)[::-1]
    for axis, key in zip(axes[0], keys, strict=True):
        for i, name in enumerate(names):
            value = summaries[name].get(key)
            if value is None:
                continue
            color = COLORS.get(name.split()[0], OTHER_COLORS[0])
            below, above = value["median"] - value["min"], value["max"] - value["median"]
            axis.barh(
                i, value["median"], color=color, xerr=[[below], [above]], error_kw={"lw": 1, "alpha": 0.6}
            )
            axis.annotate(f" {value['median']:,.4g}", (value["max"], i), va="center", fontsize=8)
        axis.set_title(heading(key), fontsize=9)
        axis.set_yticks(range(len(names)), names, fontsize=8)
        axis.set_xlim(0, 1.25 * max(values[key]["max"] for values in summaries.values() if key in values))
        axis.tick_params(axis="x", labelsize=7)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    plt.close(figure)
