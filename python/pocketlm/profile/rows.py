"""The rows of a profile: what one operation reads, computes and takes, in decoding and in prefill."""

from __future__ import annotations

import dataclasses
from typing import Any

from pocketlm.checks import shown
from pocketlm.errors import ParameterError
from pocketlm.profile.names import matching

STEPS = ("decode", "prefill")


@dataclasses.dataclass(frozen=True)
class Cost:
    """What an operation costs in a step.

    Attributes:
        seconds: mean over the fastest quarter of the steps, which other programs disturbed least; of the
            same steps for every row, without what the clock itself adds, so that the rows add up to the step
            (medians of parts would not).
        spread: distance of the quartiles over all repeats, in seconds.
        bytes: of weights and cache that it reads.
        macs: multiply-adds.
        share: of the step's time.
        bytes_per_second: ``bytes / seconds``.
        bandwidth_share: of what the machine's memory delivers; above 1 where the caches hold the data.
        bound: the lower roof for this work: ``memory``, ``compute``, or ``None`` where it has neither.
        roof_seconds: least time by the roofs of the machine.
        joules: energy, by the power of such steps (:class:`~pocketlm.profile.energy.Energy`).
    """

    seconds: float
    spread: float
    bytes: int
    macs: int
    share: float
    bytes_per_second: float
    bandwidth_share: float
    bound: str | None
    roof_seconds: float
    joules: float


@dataclasses.dataclass(frozen=True)
class Row:
    """One operation.

    Attributes:
        name: canonical name of its site, such as ``layers.3.ffn.down``.
        layer: number of its layer, if it is in one.
        site: the name within the layer, such as ``ffn.down``.
        op: kind of operation: ``linear``, ``norm``, ``attention`` and so on; ``sample`` is the use of logits,
            ``dispatch`` the waking of the threads and what else is in no operation.
        tensor: name of its matrix, if it has one.
        kind: kind of that matrix: ``p2`` to ``p8``, ``bf16``, ``f16``, ``f32``.
        shape: [outputs, inputs] of that matrix.
        bits: stored bits per weight, codebooks and scales included.
        weight_bytes: stored bytes of that matrix.
        fused: operations that ran in the same phases of the step, whose time was measured as one and
            divided: among products by bytes (decode) or weights (prefill), else by elements touched.
        inputs: names of the operations that it reads; of a slice, what that is cut from.
        decode, prefill: costs of a step that decodes one token, and of the prefill of the prompt.
        sensitivity: Kullback-Leibler divergence from the source model, in nats per token, that this
            tensor's kind alone costs; ``None`` where it is not known.
    """

    name: str
    layer: int | None
    site: str
    op: str
    tensor: str | None
    kind: str | None
    shape: tuple[int, int] | None
    bits: float | None
    weight_bytes: int
    fused: tuple[str, ...]
    inputs: tuple[str, ...]
    decode: Cost
    prefill: Cost
    sensitivity: float | None = None

    def cost(self, step: str) -> Cost:
        """The costs of ``decode`` or ``prefill``."""
        return self.decode if step == "decode" else self.prefill


SORTS = ("order", "time", "bytes", "macs", "bits", "rate", "energy", "name")


class Table(tuple[Row, ...]):
    """Rows in order of execution; sorting and filtering give new tables."""

    def filter(self, *patterns: str) -> Table:
        """Rows that match one of the patterns, such as ``ffn.*`` or ``layers.3.*``.

        Raises:
            ParameterError: a pattern matches nothing; names what is near.
        """
        names = {row.name for pattern in patterns for row in matching(pattern, self)}
        return Table(row for row in self if row.name in names)

    def sort(self, by: str = "time", step: str = "decode") -> Table:
        """Sorted by time, bytes, macs, bits, rate (bytes per second) or energy, largest first, by name, or in
        order of execution.

        Raises:
            ParameterError: there is no such column or step.
        """
        check_step(step)
        if by not in SORTS:
            raise ParameterError(f"sort: must be one of {', '.join(SORTS)}, not {shown(by)}")
        if by == "order":
            return self
        if by == "name":
            return Table(sorted(self, key=lambda row: row.name))
        keys = {
            "time": lambda row: row.cost(step).seconds,
            "bytes": lambda row: row.cost(step).bytes,
            "macs": lambda row: row.cost(step).macs,
            "bits": lambda row: row.bits or 0,
            "rate": lambda row: row.cost(step).bytes_per_second,
            "energy": lambda row: row.cost(step).joules,
        }
        return Table(sorted(self, key=keys[by], reverse=True))

    def to_dicts(self) -> list[dict[str, Any]]:
        """Plain data, for JSON or a data frame. Without slices, which do nothing and which no row reads."""
        return [dataclasses.asdict(row) for row in self if row.op != "slice"]


def check_step(step: str) -> None:
    """Raises ParameterError for a step that is not measured."""
    if step not in STEPS:
        raise ParameterError(f"step: must be decode or prefill, not {shown(step)}")
