"""What each kind of each tensor of a profiled model would cost."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pocketlm.graph import Linear
from pocketlm.kinds import PALETTES
from pocketlm.palettize.recipe import KEEP, KINDS
from pocketlm.profile.costs import Costs, cache_directory
from pocketlm.profile.names import has_choice
from pocketlm.profile.rows import Row
from pocketlm.profile.whatif import KEPT_AS, Matrix, known_losses, stored_bytes

if TYPE_CHECKING:
    from pocketlm.profile.profile import Profile


def matrices(profile: Profile, progress: Callable[[int, int], object] | None) -> tuple[Matrix, ...]:
    """The tensors with a choice, and what each kind costs them."""
    rows = {row.name: row for row in profile.table}
    readers: dict[str, list[Row]] = {}
    for op in profile.graph.ops:
        row = rows[op.name]
        if row.tensor is not None and has_choice(op, row.tensor):
            readers.setdefault(row.tensor, []).append(row)
    now = {row.name: row.kind for row in profile.table if row.op == "linear" and row.kind is not None}
    chosen = {row.kind for group in readers.values() for row in group if row.kind is not None}
    dense = sorted(chosen - {*PALETTES} | {KEPT_AS})
    directory = cache_directory() if profile.keep_times else None
    costs = Costs(profile.graph, now, profile.setting, profile.machine.fingerprint, directory)
    costs.measure([*PALETTES, *dense], progress)
    linears = [op for op in profile.graph.ops if isinstance(op, Linear)]
    projections = {op.name for op in linears if op.name.startswith("layers.")}
    found = []
    for name, group in readers.items():
        kind, shape = group[0].kind, group[0].shape
        assert kind is not None and shape is not None
        times: dict[str, tuple[float, float]] = {}
        for choice in KINDS:
            new = choice if choice != KEEP else (kind if kind not in PALETTES else KEPT_AS)
            times[choice] = _scaled(group, new, costs)
        found.append(
            Matrix(
                name=name,
                shape=shape,
                ops=tuple(row.name for row in group),
                projection=any(row.name in projections for row in group),
                kind=kind,
                bytes={choice: stored_bytes(shape, choice, kind) for choice in KINDS},
                decode={choice: pair[0] for choice, pair in times.items()},
                prefill={choice: pair[1] for choice, pair in times.items()},
                kl=known_losses(profile.sensitivities, name),
            )
        )
    return tuple(found)


def _scaled(group: list[Row], kind: str, costs: Costs) -> tuple[float, float]:
    """Measured times of a tensor's products, scaled to another kind. Looking rows up costs the same with
    any."""
    decode = prefill = 0.0
    for row in group:
        if row.op != "linear" or row.kind is None:
            continue
        now, then = costs.seconds(row.name, row.kind), costs.seconds(row.name, kind)
        decode += row.decode.seconds * then[0] / now[0]
        prefill += row.prefill.seconds * then[1] / now[1]
    return decode, prefill
