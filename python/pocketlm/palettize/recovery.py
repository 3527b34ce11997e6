"""Recovery of accuracy behind palettization: what is asked for, its course, and what came of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from os import PathLike
from typing import TYPE_CHECKING, Literal

from pocketlm.adapters.config import stored_bytes
from pocketlm.checks import integer, shown
from pocketlm.errors import ParameterError
from pocketlm.loading.place import ADAPTERS, RECOVERY
from pocketlm.palettize.extra import require_training

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pocketlm.adapters.write import Pair
    from pocketlm.loading import LoadedModel
    from pocketlm.loading.directory import DirectoryWriter
    from pocketlm.palettize.tensors import Output
    from pocketlm.palettize.work import Work

MAX_RANK = 512
MAX_TOKENS = 1 << 40
TRAINING_WINDOW = 256  # tokens of a sequence to learn from


@dataclasses.dataclass(frozen=True)
class Recovery:
    """What is asked for.

    Attributes:
        rank: average rank of the adapter, 0 for none. Its budget is ``rank`` numbers for each input and each
            output of every projection.
        dtype: how it is stored.
        train: tokens of text to learn from, 0 for none.
    """

    rank: int = 0
    dtype: Literal["int8", "f16"] = "int8"
    train: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "rank", integer("recover", self.rank, 0, MAX_RANK))
        object.__setattr__(self, "train", integer("recover_train", self.train, 0, MAX_TOKENS))
        if not isinstance(self.dtype, str) or self.dtype not in ("int8", "f16"):
            raise ParameterError(f"recover_dtype: must be 'int8' or 'f16', not {shown(self.dtype)}")

    @property
    def int8(self) -> bool:
        """Whether the adapter is stored as int8."""
        return self.dtype == "int8"

    def check(self, calibration: object, text: object) -> None:
        """Refuses what cannot be done, before any work.

        Raises:
            ParameterError: there is no text to calibrate with or to learn from.
            UnsupportedError: the packages that training needs are not installed.
        """
        if self.rank and calibration is None:
            raise ParameterError("recover: needs calibration text (calibration, --calibration)")
        if self.train and text is None:
            raise ParameterError("recover_train: needs text to learn from (recover_text, --recover-text)")
        if text is not None and not self.train:
            raise ParameterError("recover_text: is for recover_train, which is not asked for")
        if self.train:
            require_training("recover_train", optimiser=True)


@dataclasses.dataclass(frozen=True)
class Training:
    """What came of training.

    Attributes:
        losses: end to end, in nats per token: means over the first and the last steps, a twentieth each.
            ``None`` where blocks were trained.
        judged: end to end, in nats per token, on one batch of the text: before, and behind. ``None`` where
            blocks were trained.
        worse: how many of the ``parts`` that were trained, the whole or each block, did worse behind on the
            batch that judges. They stay as they were.
    """

    losses: tuple[float, float] | None
    judged: tuple[float, float] | None
    worse: int
    parts: int


@dataclasses.dataclass(frozen=True)
class RecoveryReport:
    """What came of it.

    Attributes:
        bytes: of the adapter's matrices.
        ranks: by tensor; 0 where there is no term.
        remaining: mean squared error of the outputs over what it was before the closed-form correction, by
            tensor, on the calibration text.
        training: what came of that; ``None`` if there was none.
    """

    bytes: int
    ranks: dict[str, int]
    remaining: dict[str, float]
    training: Training | None = None

    @property
    def losses(self) -> tuple[float, float] | None:
        """Of the training end to end, in nats per token: means over its first and its last steps, a twentieth
        each. ``None`` if there was none, or blocks were trained."""
        return self.training.losses if self.training else None


def recover_weights(
    work: Work, tensors: list[Output], writer: DirectoryWriter, *, threads: int | None, progress: bool
) -> RecoveryReport | None:
    """What ``work`` asks for: writes ``adapters/recovery`` into the directory in the making, whose weights
    are written, and trains both. ``None`` if nothing is asked for.

    The same call goes on where an interrupted one stopped and ends in the same bytes.
    """
    recovery = work.recovery
    if not (recovery.rank or recovery.train):
        return None
    # Imported here, since reports and arguments need none of it.
    from pocketlm.adapters.write import write_adapter
    from pocketlm.palettize.recover import Corrections, correct

    found = Corrections({}, {}, {})
    if recovery.rank:
        moments = work.importance.calibration
        assert moments is not None  # since Recovery.check has passed, and the plan is made
        found = correct(work.model, tensors, moments, recovery, writer, progress=progress)
    pairs: dict[str, Pair] = found.pairs
    training = None
    if work.windows is not None:
        from pocketlm.palettize.recover_train import train

        pairs, training = train(work.model, tensors, pairs, work.windows, recovery, writer, progress=progress)
    if pairs:
        write_adapter(writer.partial / ADAPTERS / RECOVERY, pairs, work.model.path.name, int8=recovery.int8)
    size = sum(stored_bytes(len(a), len(b), a.shape[1], int8=recovery.int8) for a, b in pairs.values())
    return RecoveryReport(size, found.ranks, found.remaining, training)


def training_windows(
    model: LoadedModel, text: str | PathLike[str] | Iterable[str] | None, recovery: Recovery
) -> NDArray[np.uint32] | None:
    """Token ids [windows, length] to learn from, spread evenly over the text; none without training."""
    if not recovery.train:
        return None
    from pocketlm.palettize.text import read_windows

    assert text is not None
    return read_windows(text, model, recovery.train, window=TRAINING_WINDOW, argument="recover_text")
