"""What lm-evaluation-harness asks of a model, answered as its ``hf`` model answers.

Written without the harness, which only adds its base class and its registry (:mod:`pocketlm.lm_eval`), so
that it can be tested where the harness is not installed. The semantics that decide about figures:

- A context's trailing spaces belong to the continuation; both are tokenized as one text and cut where the
  context's own tokens end. An empty context is the token that begins (else ends) a text.
- What does not fit is cut from the left of the context: ``max_length`` tokens are read, and what follows each
  of them is predicted.
- A rolling likelihood goes through the text in windows of ``max_length`` predictions; the first begins with
  the prefix token, the last reaches back to be full. Tokens that the tokenizer adds are predicted too.
- A generation is greedy unless sampling is asked for, ends at the model's end token, and is cut at the first
  of the ``until`` strings.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketlm.errors import ParameterError, WeightError
from pocketlm.evaluate.generation import generation
from pocketlm.generate.params import SamplingParams
from pocketlm.model import LM
from pocketlm.scores import token_logprobs

Scored = tuple[float, bool]
Progress = Callable[[int], object]


def _silent(done: int) -> None:
    pass


class Harness:
    """The requests of the harness on an :class:`~pocketlm.LM`.

    Args:
        lm: the model.
        max_length: tokens that it reads at most; by default its context.
        together: requests that run as one batch.
        seed: of sampled generations; the request's place in the list is added.

    Every method calls ``progress`` with the number of runs done since the last call.

    Raises:
        ParameterError: an argument is out of range, or no token can stand before a text's first.
    """

    def __init__(
        self,
        lm: LM,
        *,
        max_length: int | None = None,
        together: int = 16,
        seed: int = 1234,
    ) -> None:
        if max_length is not None and not 1 <= max_length <= lm.context:
            raise ParameterError(f"max_length: must be from 1 to the model's {lm.context}, not {max_length}")
        if together < 1:
            raise ParameterError(f"batch_size: must be positive, not {together}")
        self.lm, self.together, self.seed = lm, together, seed
        self.max_length = max_length or lm.context
        tokenizer = lm.tokenizer
        prefix = tokenizer.bos if tokenizer.bos is not None else min(tokenizer.eos, default=None)
        if prefix is None:
            raise ParameterError("the model has no token that begins or ends a text, to predict a first from")
        self.prefix = prefix
        self._prefix_text = tokenizer.token_text(prefix)

    def encode(self, text: str, *, special: bool | None = None) -> list[int]:
        """Token ids; with ``special`` open, the tokenizer's own are added unless the text has them."""
        if special is None:
            special = not (self._prefix_text and text.startswith(self._prefix_text))
        return self.lm.tokenizer.encode(text, bos=special)

    def pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Token ids of a context and of what follows it.

        Raises:
            ParameterError: the continuation has no token of its own.
        """
        if not context:
            ids = self.encode(continuation, special=False)
            head, rest = ([self.prefix], ids) if ids[:1] != [self.prefix] else (ids[:1], ids[1:])
        else:
            head = self.encode(context.rstrip())
            rest = self.encode(context + continuation)[len(head) :]
        if not rest:
            raise ParameterError(f"continuation: {continuation!r:.60} adds no token to {context[-60:]!r}")
        # Of a context of spaces nothing is left where the tokenizer adds no token.
        return head or [self.prefix], rest

    def loglikelihood(
        self, requests: Sequence[tuple[str, str]], progress: Progress = _silent
    ) -> list[Scored]:
        """Of each (context, continuation): the log-probability of the continuation, and whether it is what
        greedy decoding would say."""
        return self.score([self.pair(context, continuation) for context, continuation in requests], progress)

    def loglikelihood_rolling(self, texts: Sequence[str], progress: Progress = _silent) -> list[float]:
        """The log-probability of each whole text."""
        cut = [list(rolling(self.encode(text), self.prefix, self.max_length)) for text in texts]
        scores = iter(self.score([window for windows in cut for window in windows], progress))
        return [sum(next(scores)[0] for _ in windows) for windows in cut]

    def score(
        self, pairs: Sequence[tuple[list[int], list[int]]], progress: Progress = _silent
    ) -> list[Scored]:
        """As :meth:`loglikelihood`, of token ids.

        Raises:
            ParameterError: a continuation is longer than ``max_length``.
            WeightError: the model gives numbers that are not finite.
        """
        # Answers to a question often differ in their last token only: such share a run.
        runs: dict[tuple[int, ...], list[int]] = {}
        for place, (head, rest) in enumerate(pairs):
            if len(rest) > self.max_length:
                raise ParameterError(
                    f"continuation: {len(rest)} tokens; the model reads {self.max_length} at most"
                )
            ids = (*head, *rest)[-(self.max_length + 1) :][:-1]
            runs.setdefault(ids, []).append(place)
        found: list[Scored] = [(0.0, True)] * len(pairs)
        for batch in _chunks(list(runs.items()), self.together):
            receivers, first = [], []
            for ids, places in batch:
                targets = [(place, pairs[place][1]) for place in places]
                begin = len(ids) - max(len(rest) for _, rest in targets)
                receivers.append(_receiver(len(ids), targets, found))
                first.append(begin)
            with np.errstate(invalid="ignore"):  # what is not finite is looked for afterwards
                self.lm.evaluate([ids for ids, _ in batch], receivers, first)
            if not all(math.isfinite(found[place][0]) for _, places in batch for place in places):
                raise WeightError(f"{self.lm.name or 'the model'}: gives logits that are not finite numbers")
            progress(sum(len(places) for _, places in batch))
        return found

    def generate_until(
        self, requests: Sequence[tuple[str, Mapping[str, Any]]], progress: Progress = _silent
    ) -> list[str]:
        """The text that continues each context, under the generation arguments beside it.

        Raises:
            ParameterError: an argument is unknown or out of its range, or leaves no room for the context;
                names the request, by its place from 0, and the argument.
        """
        # All are looked at before the first is run.
        asked = [self._asked(place, arguments) for place, (_, arguments) in enumerate(requests)]
        texts: list[str] = []
        for batch in _chunks(list(zip(requests, asked, strict=True)), self.together):
            prompts = [self.encode(context)[-room:] for (context, _), (_, _, room) in batch]
            params, stops = [params for _, (params, _, _) in batch], [until for _, (_, until, _) in batch]
            for done, until in zip(self.lm.generate(prompts, params), stops, strict=True):
                text = self.lm.tokenizer.decode(done.tokens)
                texts.append(text[: min((i for s in until if (i := text.find(s)) >= 0), default=len(text))])
            progress(len(batch))
        return texts

    def _asked(self, place: int, arguments: Mapping[str, Any]) -> tuple[SamplingParams, list[str], int]:
        """What a request asks for, and the tokens that are left for its context."""
        try:
            params, until = generation(arguments, self.seed + place)
            room = self.max_length - (params.max_tokens or 0)
            if room < 1:
                raise ParameterError(
                    f"max_gen_toks: {params.max_tokens} leave no room for a context; the model's length is "
                    f"{self.max_length}"
                )
        except ParameterError as problem:
            raise ParameterError(f"request {place}: {problem}") from problem
        return params, until, room


def rolling(ids: Sequence[int], prefix: int, length: int) -> Iterator[tuple[list[int], list[int]]]:
    """Windows over ``ids`` as (context, predicted): each token predicted once, ``length`` at a time, from as
    much context as makes the window full."""
    for start in range(0, len(ids), length):
        end = min(start + length, len(ids))
        begin = max(end - length, 0) if start else 0
        before = ids[begin - 1 : start] if start else [prefix]
        yield list(before), list(ids[start:end])


def _receiver(
    length: int, targets: list[tuple[int, list[int]]], found: list[Scored]
) -> Callable[[int, NDArray[np.float32]], None]:
    def receive(start: int, rows: NDArray[np.float32]) -> None:
        for place, rest in targets:
            # Row `length - len(rest) + i` predicts the i-th token.
            offset = length - len(rest)
            low, high = max(start, offset), start + len(rows)
            if low >= high:
                continue
            wanted = np.asarray(rest[low - offset : high - offset])
            used = rows[low - start :]
            total, greedy = found[place]
            total += float(token_logprobs(used, wanted).sum())
            found[place] = total, greedy and bool((used.argmax(-1) == wanted).all())

    return receive


def _chunks(values: list[Any], size: int) -> Iterable[list[Any]]:
    return (values[i : i + size] for i in range(0, len(values), size))
