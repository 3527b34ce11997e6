"""What kinds cost in time on this machine: the profile of a palettized form of the model, in memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from pocketlm.loading import LoadedModel
from pocketlm.palettize.damage import Notes
from pocketlm.palettize.forms import Forms
from pocketlm.palettize.recipe import Candidate

_PROMPT, _REPEATS = 32, 5
_CONTEXT = 512  # tokens that the cache of the profiled model holds


@dataclasses.dataclass(frozen=True)
class Speeds:
    """Times of a decode step.

    Attributes:
        seconds: of all products with a tensor, by tensor and kind.
        rest: seconds of everything else.
    """

    seconds: dict[str, dict[str, float]]
    rest: float


def measure_speeds(
    model: LoadedModel,
    tensors: Sequence[Candidate],
    kind: str,
    forms: Forms,
    notes: Notes,
    *,
    threads: int | None,
    progress: Callable[[int, int], object] | None,
) -> Speeds:
    """Measures the model with all ``tensors`` as ``kind``, and from that what every other kind would take
    (see :mod:`pocketlm.profile`). Times of products come from this user's cache where it has them."""
    note = notes.note("speeds")
    if note is not None:
        return Speeds(note["seconds"], note["rest"])
    # Imported here: only this runs a model for its speed.
    from pocketlm._core import Engine, Sampler
    from pocketlm.describe import describe
    from pocketlm.model import LM
    from pocketlm.profile.run import profile
    from pocketlm.tokenizer import Tokenizer

    store = forms.overlaid(model.store, dict.fromkeys(tensors, kind))
    loaded = dataclasses.replace(model, store=store)
    context = min(_CONTEXT, model.graph.context_length)
    engine = Engine(model.graph.to_json(), store, threads=threads, cache_tokens=2 * context)
    with LM(
        engine,
        lambda: Tokenizer.of(loaded),
        Sampler,
        context=context,
        describe=lambda: describe(loaded.graph, store),
        name=model.path.name,
        loaded=loaded,
    ) as lm:
        found = profile(lm, prompt=min(_PROMPT, context), repeats=_REPEATS)
        matrices = {matrix.name: matrix for matrix in found.measure_kinds(progress)}
        now = sum(matrix.decode[matrix.current] for matrix in matrices.values())
        seconds = {tensor.name: matrices[tensor.name].decode for tensor in tensors}
        speeds = Speeds(seconds, max(0.0, found.decode.seconds - now))
    notes.record("speeds", dataclasses.asdict(speeds))
    return speeds
