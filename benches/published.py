"""The results that docs/performance.md shows: a folder of JSON files, one for each of its sections.

A section is known by the processor's class, the model and the kind of comparison, which its path says and its
contents give: ``avx2/llama-3.2-1b-speed.json``. Publishing another of the same three replaces it. A Markdown
file there holds a section of an older build whose runs were not kept, as it was written.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benches.shapes import SHAPES

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "performance"
# Classes of processors, the widest first: what each has, by the names of benches/machine.py, and in words.
CLASSES = {
    "avx512amx": ("amx_int8", "with AMX"),
    "avx512vbmi": ("avx512vbmi", "with AVX-512 VBMI"),
    "avx512": ("avx512_vnni", "with AVX-512 VNNI"),
    "avx2vnni": ("avx_vnni", "with AVX2 and AVX-VNNI"),
    "avx2": ("avx2", "with AVX2 alone"),
    "neon-i8mm": ("i8mm", "with NEON and int8 matrix products"),
    "neon-dotprod": ("asimddp", "with NEON and int8 dot products"),
    "other": ("", "with other instruction sets"),
}
KINDS = ("speed", "load", "batches", "long", "speculation")
FIRST = "llama-3.2-1b"  # of the page's sections of a kind; others follow in the order of their shapes
LONG = 2048  # tokens before a decode; more is a comparison of long contexts
STEM = re.compile(rf"(?P<subject>.+)-(?P<kind>{'|'.join(KINDS)})(?:-held-(?P<isa>.+))?")
# What the page needs of a comparison, and of each of its runs.
FIELDS = ("shape", "arguments", "isa", "machine", "date", "versions", "checks", "not_run", "results")
ARGUMENTS = ("variants", "vocab", "threads", "repeats", "prompt", "after", "batch", "generate", "only_load")
RUN = ("round", "date", "figures", "reading", "bandwidth", "others_cpu", "at")


@dataclass(frozen=True)
class Section:
    """Which section of the page something is.

    Attributes:
        processor: one of ``CLASSES``.
        subject: a shape, or the name of a model.
        kind: one of ``KINDS``.
        isa: what ``POCKETLM_ISA`` held pocketlm to, or nothing.
    """

    processor: str
    subject: str
    kind: str
    isa: str = ""

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Section:
        """The section that results belong to."""
        flags = values["machine"]["instruction_sets"]
        processor = next(name for name, (flag, _) in CLASSES.items() if flag in flags or not flag)
        if values.get("kind") == "speculation":
            return cls(processor, values["model"], "speculation", values.get("isa", ""))
        return cls(processor, values["shape"], _kind(values["arguments"]), values.get("isa", ""))

    @classmethod
    def at(cls, path: Path) -> Section:
        """The section that a file of the folder holds.

        Raises:
            ValueError: its path names none.
        """
        found = STEM.fullmatch(path.stem)
        if path.parent.name not in CLASSES or found is None:
            raise ValueError(f"{path}: not CLASS/MODEL-KIND, with one of {', '.join(CLASSES)} and {KINDS}")
        return cls(path.parent.name, found["subject"], found["kind"], found["isa"] or "")

    def path(self, folder: Path) -> Path:
        """Where its results lie, without an ending: names of models have dots."""
        held = f"-held-{self.isa}" if self.isa else ""
        return folder / self.processor / f"{self.subject}-{self.kind}{held}"

    def title(self, values: Mapping[str, Any]) -> str:
        """Its heading, from facts alone unless the results name another."""
        what = {"load": "load to first token", "long": "long contexts"}.get(self.kind, self.kind)
        if self.kind == "long" and values:
            what += f", up to {_longest(values['arguments']):,} tokens"
        held = f", pocketlm held to {self.isa}" if self.isa else ""
        beginning = values.get("title") or f"{self.subject}: {what}"
        return f"### {beginning}, on a processor {CLASSES[self.processor][1]}{held}"

    def order(self) -> tuple[object, ...]:
        """Where it stands on the page."""
        shapes = [FIRST, *SHAPES]
        place = shapes.index(self.subject) if self.subject in shapes else len(shapes)
        return list(CLASSES).index(self.processor), KINDS.index(self.kind), place, self.subject, self.isa


def _longest(arguments: Mapping[str, Any]) -> int:
    lengths: list[int] = [0, *arguments.get("prompt", []), *arguments.get("after", [])]
    return max(lengths)


def _kind(arguments: Mapping[str, Any]) -> str:
    if arguments["only_load"]:
        return "load"
    if arguments["batch"]:
        return "batches"
    return "long" if _longest(arguments) > LONG else "speed"


def everything(folder: Path) -> list[tuple[Section, Mapping[str, Any] | str]]:
    """All sections in the page's order, with their results, or their text where no results were kept."""
    found: dict[Section, Mapping[str, Any] | str] = {}
    for path in [*folder.glob("*/*.md"), *folder.glob("*/*.json")]:
        section = Section.at(path)
        if section in found:
            raise ValueError(f"{path.parent.name}/{path.stem}: there as JSON and as Markdown")
        content = path.read_text(encoding="utf-8")
        found[section] = content.strip() if path.suffix == ".md" else json.loads(content)
    return sorted(found.items(), key=lambda pair: pair[0].order())


def stripped(values: Mapping[str, Any]) -> dict[str, Any]:
    """What the page needs of a comparison."""
    kept = {key: values[key] for key in FIELDS if values.get(key)}
    kept["arguments"] = {key: values["arguments"][key] for key in ARGUMENTS if key in values["arguments"]}
    kept["not_run"] = values["not_run"]
    kept["results"] = {
        name: [{key: run[key] for key in RUN if key in run} for run in runs]
        for name, runs in values["results"].items()
    }
    return kept


def add(folder: Path, values: Mapping[str, Any], title: str | None = None, note: str | None = None) -> Path:
    """Puts results into the folder, in the place of those of the same section; returns their path.

    A title is the heading's beginning, instead of the model and the kind. A note stands below the heading,
    and goes when the results are replaced: it was said of them.
    """
    section = Section.of(values)
    kept = dict(values) if section.kind == "speculation" else stripped(values)
    kept |= {key: value for key, value in (("title", title), ("note", note)) if value}
    path = section.path(folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_name(f"{path.name}.md").unlink(missing_ok=True)
    target = path.with_name(f"{path.name}.json")
    target.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    return target
