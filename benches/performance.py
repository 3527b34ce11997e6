"""Writes measured figures into docs/performance.md, between its marks.

    python -m benches.performance [benches/out/peers-*.json ...]

Takes the files that ``benches/peers.py`` wrote, and ``tests/instructions.json``. Nothing is typed by hand: a
figure on that page was measured, or is not there.
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
from benches import instructions, report

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "performance.md"
BASELINE = "pocketlm"
BATCH = "decode_batch_"


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


def section(values: Mapping[str, Any]) -> str:
    """One comparison."""
    arguments = values["arguments"]
    what = "load to first token" if arguments["only_load"] else "batches" if arguments["batch"] else "speed"
    parts = [f"### {values['shape']}: {what}", conditions(values)]
    parts.append(report.text(values["results"], BASELINE))
    if left := bound(values["results"]):
        parts += ["What is left to the bandwidth (medians):", left]
    if batches := together(values["results"]):
        parts.append(batches)
    versions = "; ".join(f"{name}: {version}" for name, version in values["versions"].items())
    parts.append(f"Versions: {versions}.")
    parts += [f"Not run: {name} ({reason})." for name, reason in values["not_run"].items()]
    return "\n\n".join(parts)


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
    """Writes the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="*", type=Path, metavar="JSON", help="of benches/peers.py, in order")
    args = parser.parse_args()
    sections = {"instructions": counted()}
    if args.files:
        comparisons = [section(json.loads(file.read_text())) for file in args.files]
        sections["comparisons"] = "\n\n".join(comparisons)
    PAGE.write_text(filled(PAGE.read_text(), sections))
    print(f"{PAGE.relative_to(ROOT)}: {', '.join(sections)} written")


if __name__ == "__main__":
    main()
