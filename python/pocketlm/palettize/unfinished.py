"""An unfinished calibration on the disk: what is done of it, and what it still needs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from pocketlm.errors import StorageError
from pocketlm.graph import Graph, Linear
from pocketlm.loading.files import storage_errors
from pocketlm.palettize import guided
from pocketlm.palettize.arrays import has_shape
from pocketlm.palettize.hidden import GRADIENT, STATE, Hidden
from pocketlm.palettize.segments import Segment

JOURNAL = "journal.json"
SPARE_BYTES = 16 << 20


def moment_file(graph: Graph, op: Linear) -> str:
    """The file with the second moment of what ``op`` reads; products of the same input share it."""
    return f"moment-{op.x:05d}.npy"


def check_room(
    partial: Path,
    graph: Graph,
    parts: list[Segment],
    wholes: list[tuple[int, Segment]],
    done: tuple[int, int],
    tokens: int,
    groups: int,
) -> None:
    """Whether the disk has room for what is still to be written."""
    with storage_errors(partial):
        there = {path.name for path in partial.iterdir()}
    moments = {
        moment_file(graph, op): 4 * graph.ops[op.x].width ** 2 for op in graph.ops if isinstance(op, Linear)
    }
    needed = sum(size for name, size in moments.items() if name not in there) + SPARE_BYTES
    state = [4 * tokens * part.ops[-1].width for part in parts[:-1]]  # behind each part
    if done[0] < len(parts):
        kept = {at for at, _ in wholes}
        ahead = [size for index, size in enumerate(state, 1) if index > done[0]]
        needed += sum(size for index, size in enumerate(state, 1) if index > done[0] and index in kept)
        needed += sum(sorted(ahead)[-2:])
    if groups:
        needed += guided.group_bytes(graph, groups) - sum(
            path.stat().st_size for path in partial.iterdir() if path.name.startswith(("guided-", "rows-"))
        )
        needed += sum(sorted(state)[-2:])  # gradients
    with storage_errors(partial):
        free = shutil.disk_usage(partial).free
    if free < needed:
        raise StorageError(f"{partial}: calibration needs {needed} bytes, the disk has {free} free")


def done_before(
    partial: Path, parts: list[Segment], wholes: list[tuple[int, Segment]], tokens: int, groups: int
) -> tuple[int, int]:
    """How many parts of the forward and of the backward pass an earlier run has finished: none where one of
    their files is missing, or has another size than it should."""
    try:
        facts = json.loads((partial / JOURNAL).read_text())
        done, back = facts["parts"], facts["back"]
    except (OSError, ValueError, KeyError, TypeError):
        return 0, 0
    if not (isinstance(done, int) and isinstance(back, int)):
        return 0, 0
    if not (0 <= done <= len(parts) and 0 <= back <= len(wholes)):
        return 0, 0
    # What is still to be done reads from these.
    states = {at for at, _ in wholes[: len(wholes) - back] if 0 < at <= done}
    if done < len(parts):
        states |= {done} - {0}
    slopes = {wholes[-back][0]} if 0 < back < len(wholes) else set()
    between = [(border, STATE) for border in states] + [(border, GRADIENT) for border in slopes]
    there = all(
        Hidden.is_there(partial, border, tokens, parts[border - 1].ops[-1].width, what)
        for border, what in between
    )
    left = _moments(parts[:done]) | _guided([whole for _, whole in wholes[len(wholes) - back :]], groups)
    there = there and all(has_shape(partial / name, shape) for name, shape in left.items())
    return (done, back) if there else (0, 0)


def _moments(parts: list[Segment]) -> dict[str, tuple[int, ...]]:
    """The files that these parts leave going forward, and the shapes in them."""
    return {
        moment_file(part.graph, op): (op.weight.shape[1],) * 2
        for part in parts
        for op in part.ops
        if isinstance(op, Linear)
    }


def _guided(parts: list[Segment], groups: int) -> dict[str, tuple[int, ...]]:
    """The files that these parts leave going backward, and the shapes in them."""
    found: dict[str, tuple[int, ...]] = {}
    for part in parts:
        for index, op in enumerate(part.ops, part.start):
            if isinstance(op, Linear):
                rows, inputs = op.weight.shape
                found[guided.rows_file(index)] = (rows,)
                for group in range(len(guided.row_groups(rows, groups))):
                    found[guided.group_file(index, group)] = (inputs, inputs)
    return found


def replace(path: Path, facts: dict[str, Any]) -> None:
    """Writes a small file so that a kill leaves the old one or the new one."""
    new = path.with_name(path.name + ".new")
    with storage_errors(path):
        new.write_text(json.dumps(facts, indent=1) + "\n")
        new.replace(path)
