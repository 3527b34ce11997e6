"""Writes measured figures into docs/performance.md, between its marks.

    python -m benches.performance
    python -m benches.performance --add benches/out/peers-llama-tiny-4096-8192.json --note "Two rounds."

Takes all that lies in ``docs/performance`` and ``tests/instructions.json``. ``--add`` puts a file there that
``benches/peers.py`` or ``benches/speculation.py`` wrote, instead of the one of the same model, kind and class
of processor. Nothing between the marks is typed by hand: a figure was measured, or is not there.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benches import adapters, instructions, published, report
from benches.shapes import SHAPES

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "performance.md"
BASELINE = "pocketlm"
BATCH = "decode_batch_"
PEAK = "int8_peak_share_"
OLDER = "Figures of an older build, kept as they were written."


def conditions(values: Mapping[str, Any]) -> str:
    """Under what a comparison was made, in a sentence or two."""
    machine, runs = values["machine"], [run for found in values["results"].values() for run in found]
    rounds, dates = [len(found) for found in values["results"].values()], [run["date"][:10] for run in runs]
    probes = [probe / 1e9 for run in runs for probe in run["bandwidth"]]
    others = max(run["others_cpu"] for run in runs)
    return (
        f"{machine['processor']}, {machine['cores']} cores ({', '.join(machine['instruction_sets'])}), "
        f"{values['arguments']['threads']} threads; rounds: {_span(min(rounds), max(rounds))}; "
        f"{_span(min(dates), max(dates))}. Read bandwidth beside the runs: median "
        f"{statistics.median(probes):.1f} GB/s ({min(probes):.1f} to {max(probes):.1f}). Other processes "
        f"took at most {others:.0%} of the processor."
    )


def _span(least: object, most: object) -> str:
    return f"{least} to {most}" if least != most else str(least)


def bound(results: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """What lies between our decoding and the time in which memory gives the weights, as a Markdown table."""
    rows = []
    for name, runs in results.items():
        readings = [run["reading"] for run in runs if "reading" in run]
        if not readings:
            continue
        found = [(1e3 * reading["read_seconds"], 1e3 * reading["decode_seconds"]) for reading in readings]
        least, taken = (statistics.median(pair[i] for pair in found) for i in (0, 1))
        rest = statistics.median(b - a for a, b in found)
        read = readings[0]["bytes_per_token"] / 1e6
        cells = [f"{read:,.0f}", f"{least:.2f}", f"{taken:.2f}", f"{rest:.2f}", f"{least / taken:.0%}"]
        rows.append([name, *cells])
    columns = ["decode", "MB read for a token", "ms to read them", "ms taken", "ms between them", "share"]
    return report.table(columns, rows) if rows else ""


def together(results: Mapping[str, Sequence[report.Run]]) -> str:
    """How many times the tokens per second of one text a batch has, in the same process."""
    counts = sorted(
        {
            int(key.removeprefix(BATCH))
            for runs in results.values()
            for key in runs[0]["figures"]
            if key.startswith(BATCH)
        }
    )
    rows = []
    for name, runs in results.items():
        cells = []
        for count in counts:
            found = [
                run["figures"][f"{BATCH}{count}"] / run["figures"]["decode"]
                for run in runs
                if f"{BATCH}{count}" in run["figures"]
            ]
            spread = (
                {"median": statistics.median(found), "min": min(found), "max": max(found)} if found else None
            )
            cells.append(report.ratio(spread))
        rows.append([name, *cells])
    return report.table(["times one text", *(f"{count} texts" for count in counts)], rows) if counts else ""


def unpeaked(results: Mapping[str, Sequence[report.Run]]) -> str:
    """What lies between our reading of prompts and the int8 products that the cores could do meanwhile.

    Of two lengths L < M that take s and t for a token, what grows with the length takes (t - s) / (M - L) for
    each token of it: attention, which for every token goes through all before it.
    """
    rows = []
    for name, runs in results.items():
        keys = (key for key in runs[0]["figures"] if key.startswith(PEAK))
        lengths = sorted(int(key.removeprefix(PEAK)) for key in keys)
        times = {n: [1e6 / run["figures"][f"prefill_{n}"] for run in runs] for n in lengths}
        for n in lengths:
            shares = [run["figures"][f"{PEAK}{n}"] for run in runs]
            grows = [
                (much - few) / (lengths[-1] - lengths[0]) * n
                for few, much in zip(times[lengths[0]], times[lengths[-1]], strict=True)
                if lengths[-1] > lengths[0]
            ]
            least = [share * taken for share, taken in zip(shares, times[n], strict=True)]
            parts = zip(times[n], least, grows or [0.0] * len(runs), strict=True)
            found = (times[n], least, grows, [whole - part - more for whole, part, more in parts])
            cells = [f"{statistics.median(column):,.1f}" if column else "-" for column in found]
            rows.append([name, f"{n:,}", *cells, f"{statistics.median(shares):.0%}"])
    columns = ["prefill", "tokens", "us taken for a token", "us of products at the peak"]
    columns += ["us that grow with the length", "us of the rest", "share"]
    return report.table(columns, rows) if rows else ""


def absent(values: Mapping[str, Any]) -> list[str]:
    """The runtimes that have no row, in a sentence for each reason."""
    asked = {spec.partition(":")[0] for spec in values["arguments"]["variants"]}
    family = SHAPES[values["shape"]]["model_type"]
    named = [title.rpartition(" ")[0] for title in (*values["not_run"], *values["results"])]
    peers = [adapters.adapter(name) for name in adapters.names() if name not in asked]
    # Those that use another's models are another way to run it, and no runtime of their own.
    peers = [peer for peer in peers if not peer.forms_of and peer.title not in named]
    cannot = [peer.title for peer in peers if family not in peer.families]
    unasked = [peer.title for peer in peers if family in peer.families]
    parts = [f"Not run: {name}: {reason}." for name, reason in values["not_run"].items()]
    if cannot:
        parts.append(f"Without {family} models here: {', '.join(cannot)}.")
    if unasked:
        parts.append(f"Not asked for: {', '.join(unasked)}.")
    return parts


def section(values: Mapping[str, Any]) -> str:
    """One comparison."""
    parts = [published.Section.of(values).title(values)]
    if "note" in values:
        parts.append(values["note"])
    parts.append(conditions(values))
    parts.append(report.text(values["results"], BASELINE))
    if left := bound(values["results"]):
        parts += ["What is left to the bandwidth (medians):", left]
    if left := unpeaked(values["results"]):
        parts += ["What is left to the int8 peak (medians):", left]
    if batches := together(values["results"]):
        parts.append(batches)
    versions = "; ".join(f"{name}: {version}" for name, version in values["versions"].items())
    parts.append(f"Versions: {versions}.")
    return "\n\n".join([*parts, *absent(values)])


def guessed(found: Sequence[tuple[published.Section, Mapping[str, Any]]]) -> str:
    """What guessing tokens is worth, in a table of all models, and under what that was measured."""
    rows, said = [], []
    for where, values in found:
        machine = values["machine"]
        said.append(
            f"{values['model']}, {where.processor}: {values['date']}; {machine['processor']}, "
            f"{machine['cores']} cores; {', '.join(f'{k}: {v}' for k, v in values['settings'].items())}."
        )
        said += [values["note"]] if "note" in values else []
        for workload, figures in values["workloads"].items():
            without, having = (f"{rate:,.1f}" for rate in figures["tokens_per_second"])
            low, high = figures["quartiles"]
            ratio = f"{figures['ratio']:.2f} ({low:.2f} to {high:.2f})"
            guesses = f"{figures['accepted']:,} of {figures['proposed']:,}"
            cells = [without, having, ratio, guesses, str(figures["texts"]), f"{figures['others_cpu']:.0%}"]
            rows.append([values["model"], where.processor, workload, *cells])
    columns = [
        "model",
        "processor",
        "workload",
        "without, tok/s",
        "with, tok/s",
        "times the speed (quartiles)",
    ]
    columns += ["guesses right", "texts", "others' CPU"]
    return "\n\n".join([report.table(columns, rows), *said]) if rows else "Nothing was published."


def sections(folder: Path) -> dict[str, str]:
    """All that stands between marks, by their names."""
    comparisons, speculation = [], []
    for where, values in published.everything(folder):
        if isinstance(values, str):
            comparisons.append("\n\n".join([where.title({}), OLDER, values]))
        elif where.kind == "speculation":
            speculation.append((where, values))
        else:
            comparisons.append(section(values))
    written = {"comparisons": "\n\n".join(comparisons), "speculation": guessed(speculation)}
    return written | {"instructions": counted()}


def counted() -> str:
    """The recorded instruction counts."""
    record = json.loads(instructions.RECORD.read_text())
    levels = {level: values["counts"] for level, values in record["levels"].items()}
    compilers = {level: values["compiler"] for level, values in record["levels"].items()}
    said = "; ".join(f"{level}: {version}" for level, version in compilers.items())
    return instructions.rates_table(levels, record["lines"]) + f"\n\nCompilers: {said}."


def filled(page: str, sections: Mapping[str, str]) -> str:
    """``page`` with what stands between ``<!-- NAME -->`` and ``<!-- /NAME -->`` replaced.

    Raises:
        ValueError: a mark is missing.
    """
    for name, content in sections.items():
        marks = re.compile(f"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        if not marks.search(page):
            raise ValueError(f"no marks for {name!r}")
        page = marks.sub(lambda found, text=content: f"{found[1]}\n{text}\n\n{found[2]}", page)  # type: ignore[misc]
    return page


def main() -> None:
    """Adds results, if any are given, and writes the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--add", type=Path, metavar="JSON", help="results to publish")
    parser.add_argument("--title", help="the heading's beginning, instead of the model and the kind")
    parser.add_argument("--note", help="what stands below the heading, until other results replace these")
    args = parser.parse_args()
    if not args.add and (args.title or args.note):
        parser.error("--title and --note are said of what --add names")
    if args.add:
        path = published.add(published.FOLDER, json.loads(args.add.read_text()), args.title, args.note)
        print(f"{path.relative_to(ROOT)}: {args.add} added")
    written = sections(published.FOLDER)
    PAGE.write_text(filled(PAGE.read_text(), written))
    print(f"{PAGE.relative_to(ROOT)}: {', '.join(written)} written")


if __name__ == "__main__":
    main()
