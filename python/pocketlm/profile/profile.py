"""What was found about a model on a machine, and what can be asked of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

from pocketlm.describe import Description
from pocketlm.graph import Graph
from pocketlm.profile.energy import Energy
from pocketlm.profile.kinds import matrices
from pocketlm.profile.machine import Machine
from pocketlm.profile.rows import Table
from pocketlm.profile.sensitivity import Sensitivities
from pocketlm.profile.stand_in import Setting
from pocketlm.profile.whatif import Base, Matrix, WhatIf, predict, resolve


@dataclasses.dataclass(frozen=True)
class Total:
    """A whole step, all in seconds.

    Attributes:
        seconds: of steps without the clock, mean over the fastest quarter of the pairs of steps with and
            without it.
        spread: distance of their quartiles.
        timed_seconds: of the steps with the clock in the same pairs. The rows are parts of these, taken
            times ``seconds / timed_seconds``, so that they add up to the step as it runs.
        timing_cost: what the measuring itself adds, as a share of the step; 0 where noise hides it.
        steps: how many of each were measured.
        threads: on which they ran.
        tokens: of a step.
        tokens_per_second: ``tokens / seconds``.
        bytes, macs: read, and multiply-adds.
        joules: energy of a step.
    """

    seconds: float
    spread: float
    timed_seconds: float
    timing_cost: float
    steps: int
    threads: int
    tokens: int
    tokens_per_second: float
    bytes: int
    macs: int
    joules: float


@dataclasses.dataclass(frozen=True, repr=False)
class Profile:
    """Where bytes and time of a model go; :func:`pocketlm.profile` makes one.

    Attributes:
        model: its name.
        machine: where it was measured, with the two roofs.
        energy: power while ``decode`` and ``prefill`` steps run, and where that figure comes from.
        description: tensors, bytes, bits per weight.
        context, prompt: tokens in the cache when decoding; tokens of the prefill.
        table: a row for each operation, in order of execution.
        decode, prefill: the whole steps.
        sensitivities: nats per token, by tensor and kind, as far as they are known.
        graph: the model's operations.
        setting: how steps of products are measured for other kinds.
        keep_times: whether measured times of products go to the user's cache directory.
        others_cpu: the share of the machine that other processes took while the steps ran, as far as the
            system says.
    """

    model: str
    machine: Machine
    energy: Mapping[str, Energy]
    description: Description
    context: int
    prompt: int
    table: Table
    decode: Total
    prefill: Total
    sensitivities: Sensitivities
    graph: Graph
    setting: Setting
    keep_times: bool = True
    others_cpu: float | None = None

    def __repr__(self) -> str:
        about = self.description
        return (
            f"Profile({self.model!r:.80}: {about.parameters:,} parameters, {about.bytes:,} bytes, "
            f"{about.bits_per_weight_projections:.2f} bits per weight ({about.bits_per_weight_all:.2f} of "
            f"everything), {len(self.table)} rows, "
            f"decode {self.decode.tokens_per_second:,.0f} tokens/s after {self.context} tokens, "
            f"prefill {self.prefill.tokens_per_second:,.0f} tokens/s of {self.prompt} tokens)"
        )

    @property
    def precise(self) -> bool:
        """Whether activations are in float32."""
        return self.setting.precise

    def total(self, step: str) -> Total:
        """The whole of ``decode`` or ``prefill``."""
        return self.decode if step == "decode" else self.prefill

    @cached_property
    def matrices(self) -> tuple[Matrix, ...]:
        """What can be chosen, with what each choice costs. Products are measured now, unless this
        machine's cache has them: some seconds."""
        return self.measure_kinds()

    def measure_kinds(self, progress: Callable[[int, int], object] | None = None) -> tuple[Matrix, ...]:
        """As :attr:`matrices`; ``progress`` is told how many measurements of how many are done."""
        if "matrices" not in self.__dict__:
            self.__dict__["matrices"] = matrices(self, progress)
        found: tuple[Matrix, ...] = self.__dict__["matrices"]
        return found

    @property
    def base(self) -> Base:
        """What predictions start from."""
        return Base(
            bytes=self.description.bytes,
            parameters=self.description.parameters,
            other_bytes=self.description.bytes - sum(m.bytes[m.current] for m in self.matrices),
            decode=self.decode.seconds,
            prefill=self.prefill.seconds,
            prompt=self.prompt,
            watts=self.energy["decode"].watts,
        )

    def what_if(self, changes: Mapping[str, Any] | str | PathLike[str] | None = None) -> WhatIf:
        """What other kinds would change: ``{"layers.*.ffn.down": "p2v"}``, or the file of a recipe. Keys are
        names of operations, sites (``ffn.down``) or tensors, with wildcards; kinds are p2, p2v, p3, p4, p8
        and keep (as in the source: 16 bits where the model is palettized already), or bits: 2 is p2v.

        A product's time is scaled by what it takes in the model's place as the other kind, on this machine.

        Raises:
            ParameterError: a pattern matches nothing, or nothing that can have the kind; a kind is unknown.
        """
        return predict(resolve(changes or {}, self.matrices, self.table), self.matrices, self.base)

    def to_dict(self) -> dict[str, Any]:
        """All measurements as plain data, for JSON."""
        return {
            "model": self.model,
            "machine": dataclasses.asdict(self.machine),
            "others_cpu": self.others_cpu,
            "energy": {step: dataclasses.asdict(energy) for step, energy in self.energy.items()},
            "context": self.context,
            "prompt": self.prompt,
            "bytes": self.description.bytes,
            "parameters": self.description.parameters,
            "bits_per_weight_projections": self.description.bits_per_weight_projections,
            "bits_per_weight_all": self.description.bits_per_weight_all,
            "decode": dataclasses.asdict(self.decode),
            "prefill": dataclasses.asdict(self.prefill),
            "rows": self.table.to_dicts(),
        }

    def to_html(self, path: str | PathLike[str]) -> Path:
        """Writes the report: one HTML file that needs no network.

        Raises:
            UnsupportedError: the extra ``report`` is not installed.
            StorageError, MissingFileError: the file cannot be written.
        """
        from pocketlm.profile.html import write_html

        return write_html(self, path)
