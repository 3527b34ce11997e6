"""A model with room for what is to be measured."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from typing import Any, Literal

from pocketlm.errors import ContextLengthError
from pocketlm.model import LM


@contextmanager
def opened(
    model: str | PathLike[str] | None,
    *,
    prompt: int | None,
    context: int | None,
    threads: int | None,
    precise: bool,
    adapter: Literal["recovery"] | None,
) -> Iterator[LM]:
    """A model with room for what is to be measured; arguments are those of :func:`pocketlm.profile`.

    Raises:
        ContextLengthError: ``prompt`` or ``context`` do not fit the model.
        As :func:`pocketlm.load`.
    """
    from pocketlm.assemble import load

    settings: dict[str, Any] = {"threads": threads, "precise": precise, "adapter": adapter}
    with load(model, **settings) as lm:
        wanted = max(prompt or 0, (context or 0) + 1)
        if wanted <= lm.context:
            yield lm
            return
        # What the model was made for is known now; its weights were looked at.
        check_room(prompt, context, lm.loaded.graph.context_length if lm.loaded else lm.context)
    with load(model, context=wanted, check_values=False, **settings) as lm:
        yield lm


def check_room(prompt: int | None, context: int | None, most: int) -> None:
    """Checks tokens of a prefill and tokens before the decoded one against a context of ``most``.

    Raises:
        ContextLengthError: they do not fit; names which.
    """
    if prompt is not None and prompt > most:
        raise ContextLengthError(f"prompt: {prompt} tokens do not fit the context of {most}")
    if context is not None and context >= most:
        raise ContextLengthError(
            f"context: {context} tokens and the one decoded after them do not fit the context of {most}"
        )
