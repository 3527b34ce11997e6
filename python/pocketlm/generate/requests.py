"""From what a caller says to jobs: prompts become token ids, parameters are completed and checked."""

from __future__ import annotations

import contextlib
import functools
import numbers
import os
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pocketlm.checks import first_of, token_ids
from pocketlm.errors import ContextLengthError, ParameterError, PocketlmError
from pocketlm.generate.job import Generation
from pocketlm.generate.params import DEFAULT_MAX_TOKENS, NEUTRAL, SamplingParams, checked
from pocketlm.tokenizer import Tokenizer

if TYPE_CHECKING:
    from pocketlm.generate.engine import Continuation, SamplerFactory

_SAMPLED = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
)

ONE = "a stream takes one prompt, not several"
LIST = "several prompts must be given as a list"


class Requests:
    """Makes the requests of one model. ``tokenizer`` is called when a tokenizer is needed."""

    def __init__(
        self,
        tokenizer: Callable[[], Tokenizer],
        sampler: SamplerFactory,
        defaults: SamplingParams,
        *,
        continuation: Callable[..., Continuation],
        context: int,
        vocab_size: int,
    ) -> None:
        self._tokenizer, self._sampler, self._defaults = tokenizer, sampler, defaults
        self._continuation = continuation
        self._context, self._vocab_size = context, vocab_size

    def ids(self, prompt: Any, *, empty: bool = False, several: str | None = None) -> list[int]:
        """Token ids of a prompt: a string, or token ids, which are checked. With ``empty`` an empty string
        stands for the token that begins a text. ``several`` says of several prompts why they are not taken.

        Raises:
            ParameterError: it is neither, it is empty, or an id is unknown.
            ContextLengthError: it does not fit the context.
        """
        if isinstance(prompt, str):
            if not prompt and not empty:
                raise ParameterError(
                    "prompt: is empty; to begin at nothing, give the token that begins a text"
                )
            tokenizer = self._tokenizer()
            ids = tokenizer.encode(prompt, limit=self._context)
            if not ids and tokenizer.bos is not None:
                ids = [tokenizer.bos]
            if not ids:
                raise ParameterError("prompt: is empty, and this model has no token that begins a text")
        else:
            ids = _token_ids("prompt", prompt, self._vocab_size, self._context, several)
        if len(ids) > self._context:
            raise ContextLengthError(f"the prompt has {len(ids)} tokens; the context holds {self._context}")
        return ids

    def joined(self, prompt: Any, continuation: Any) -> tuple[list[int], int]:
        """Token ids of both together, and how many of them are the prompt's. Text is tokenized as one where
        the prompt's tokens stay what they are."""
        ids = self.ids(prompt, empty=True)
        if isinstance(prompt, str) and isinstance(continuation, str):
            whole = self.ids(prompt + continuation)
            if whole[: len(ids)] == ids and len(whole) > len(ids):
                return whole, len(ids)
        if isinstance(continuation, str):
            rest = self._tokenizer().encode(continuation, bos=False, limit=self._context)
        else:
            rest = _token_ids("continuation", continuation, self._vocab_size, self._context)
        if not rest:
            raise ParameterError("continuation: is empty")
        return self.ids([*ids, *rest]), len(ids)

    def batch(
        self,
        prompts: Sequence[Any],
        params: Sequence[SamplingParams | None],
        overrides: Mapping[str, Any],
        several: str | None = None,
    ) -> list[list[Generation]]:
        """The texts to generate from each of some prompts. What is wrong with one of several is said with its
        place in the list, from 0 on. ``several`` is as in :meth:`ids`.

        Raises:
            As :meth:`ids` and :meth:`generations`.
        """
        found = []
        for place, (prompt, chosen) in enumerate(zip(prompts, params, strict=True)):
            at = None if len(prompts) == 1 else place
            with _told_of(at, ParameterError, ContextLengthError):
                ids = self.ids(prompt, several=several)
            with _told_of(at, ContextLengthError):  # a parameter is no matter of the prompt
                found.append(self.generations(ids, chosen, overrides))
        return found

    def generation(
        self,
        prompt: list[int],
        params: SamplingParams | None,
        overrides: Mapping[str, Any],
        owner: Hashable | None = None,
    ) -> Generation:
        """A text to generate.

        Raises:
            As :meth:`generations`; ParameterError also where ``n`` asks for several texts.
        """
        jobs = self.generations(prompt, params, overrides, owner)
        if len(jobs) > 1:
            raise ParameterError("n: only generate makes several texts of one prompt; a stream has one")
        return jobs[0]

    def generations(
        self,
        prompt: list[int],
        params: SamplingParams | None,
        overrides: Mapping[str, Any],
        owner: Hashable | None = None,
    ) -> list[Generation]:
        """The texts to generate from a prompt: as many as ``n``, with consecutive seeds.

        Raises:
            ParameterError: a parameter is unknown or out of range.
            ContextLengthError: the tokens asked for do not fit the context.
        """
        given = checked(params).replace(**overrides)
        chosen = given.over(self._defaults).over(NEUTRAL)
        room = self._context - len(prompt)
        # What the model or we would like is cut to what fits; what the caller asks for is not.
        if room < max(1, given.max_tokens or 0):
            raise ContextLengthError(
                f"the prompt has {len(prompt)} tokens and up to {given.max_tokens or 1} are to follow; "
                f"the context holds {self._context}"
            )
        for name, ids in (("stop_token_ids", chosen.stop_token_ids), ("logit_bias", chosen.logit_bias or ())):
            if any(i >= self._vocab_size for i in ids):
                raise ParameterError(f"{name}: token ids must be below {self._vocab_size}")
        # 52 bits: those of all n stay below 2**53, so that readers of JSON which know only doubles keep them.
        first = int.from_bytes(os.urandom(7)) >> 4 if chosen.seed is None else chosen.seed
        seeds = [(first + i) % (1 << 64) for i in range(chosen.n or 1)]
        return [self._job(prompt, chosen, room, seed, owner) for seed in seeds]

    def _job(
        self, prompt: list[int], chosen: SamplingParams, room: int, seed: int, owner: Hashable | None
    ) -> Generation:
        tokenizer = self._tokenizer()
        end = frozenset() if chosen.ignore_eos else tokenizer.eos
        most = min(room, chosen.max_tokens or DEFAULT_MAX_TOKENS)
        stop_ids = end | frozenset(chosen.stop_token_ids)
        return Generation(
            prompt,
            chosen,
            most,
            self._new_sampler(chosen, seed, prompt, chosen.logprobs),
            tokenizer.detokenizer(prompt),
            continuation=self._continuation(
                prompt,
                max_tokens=most,
                stop_ids=sorted(stop_ids),
                guesses=chosen.num_speculative_tokens or 0,
            ),
            draft_sampler=functools.partial(self._new_sampler, chosen, seed),
            stop_ids=stop_ids,
            token_text=tokenizer.decode_token,
            seed=seed,
            owner=owner,
        )

    def _new_sampler(
        self, params: SamplingParams, seed: int, history: list[int], logprobs: int | None = None
    ) -> Any:
        values = {name: getattr(params, name) for name in _SAMPLED}
        biases = None if params.logit_bias is None else dict(params.logit_bias)
        return self._sampler(**values, logit_bias=biases, seed=seed, logprobs=logprobs, history=history)


def is_batch(prompt: Any) -> bool:
    """Whether a prompt is a list of prompts. A list of integers is one prompt, and one of messages would be;
    an empty list holds none."""
    if isinstance(prompt, str | bytes | bytearray) or not isinstance(prompt, Sequence):
        return False
    return not prompt or not isinstance(prompt[0], numbers.Integral | Mapping)


@contextlib.contextmanager
def _told_of(place: int | None, *kinds: type[PocketlmError]) -> Iterator[None]:
    """Errors of some kinds about a prompt become errors about the prompt at this place of several."""
    try:
        yield
    except kinds as problem:
        if place is None:
            raise
        text = str(problem)
        for start in ("prompt: ", "the prompt ", "text: "):
            text = text.removeprefix(start)
        raise type(problem)(f"prompt {place}: {text}") from problem


def _token_ids(
    name: str, ids: Iterable[Any], vocab_size: int, most: int, several: str | None = None
) -> list[int]:
    if isinstance(ids, bytes | bytearray):  # its bytes would pass for ids
        raise ParameterError(f"{name}: is {type(ids).__name__}; decode it, or give token ids as a list")
    try:
        values = first_of(ids, most)
    except TypeError as problem:
        raise ParameterError(f"{name}: expected a string or token ids, not {type(ids).__name__}") from problem
    # Said before the length: of prompts there may be more than the context holds tokens.
    if isinstance(ids, Mapping) or (values and isinstance(values[0], Mapping)):
        raise ParameterError(
            f"{name}: messages go through lm.tokenizer.encode_chat(messages), which makes token ids of them"
        )
    if several and values and isinstance(values[0], Sequence):
        raise ParameterError(f"{name}: {several}")
    if len(values) > most:
        raise ContextLengthError(f"{name}: has more than {most} tokens; the context holds {most}")
    if not values:
        raise ParameterError(f"{name}: holds no tokens")
    return token_ids(name, values, vocab_size)
