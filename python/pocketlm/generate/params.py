"""How a text is to be generated: sampling parameters by vLLM's and OpenAI's names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pocketlm.checks import first_of, flag, integer, number, shown
from pocketlm.errors import ParameterError
from pocketlm.records import dataclass, field_names, replace

DEFAULT_MAX_TOKENS = 1024  # where neither caller nor model says; less where the context ends sooner
MAX_STOPS = 64
MAX_STOP_LENGTH = 1024  # characters
MAX_LOGPROBS = 64
MAX_BIASES = 4096
MAX_GUESSES = 16
MAX_SAMPLES = 128


@dataclass(frozen=True)
class SamplingParams:
    """What to sample and when to stop. ``None`` takes the model's own default, and without one the value in
    brackets.

    Attributes:
        max_tokens: most tokens to generate [as many as fit the context, at most 1024].
        temperature: 0 always takes the likeliest token; 1 samples the model's own distribution [1].
        top_k: sample from the k likeliest tokens only; 0 for all [0].
        top_p: sample from the likeliest tokens that together have this probability, in (0, 1] [1].
        min_p: drop tokens less likely than this fraction of the likeliest, in [0, 1] [0].
        repetition_penalty: above 0; divides the score of tokens already in prompt or answer [1].
        presence_penalty: in [-2, 2]; subtracted once from the score of tokens already in the answer [0].
        frequency_penalty: in [-2, 2]; the same, for each occurrence [0].
        logit_bias: token id -> number in [-100, 100] added to its score.
        stop: strings at which to stop; they are not part of the text.
        stop_token_ids: token ids at which to stop, besides the model's own.
        seed: the same seed yields the same tokens, whatever else runs; ``None`` draws one below 2**53.
        logprobs: report each token's log-probability and those of this many likeliest tokens (0 to 64).
        ignore_eos: go on past the model's end-of-text token.
        num_speculative_tokens: most tokens guessed in a step (0 to 16), from what followed the last tokens
            earlier in the text, or by a draft model. Guesses are checked: they change the speed, never the
            text. Where they do not pay, they are not made; 0 makes none [8].
        n: texts to generate from one prompt, which is computed once; number i has the seed ``seed + i`` [1].

    Raises:
        ParameterError: a value is of the wrong type or out of its range; the message names it.
    """

    max_tokens: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: Mapping[int, float] | None = None
    stop: tuple[str, ...] | str = ()
    stop_token_ids: tuple[int, ...] = ()
    seed: int | None = None
    logprobs: int | None = None
    ignore_eos: bool = False
    num_speculative_tokens: int | None = None
    n: int | None = None

    def __post_init__(self) -> None:
        put = object.__setattr__
        put(self, "max_tokens", _integer("max_tokens", self.max_tokens, 1, 1 << 31))
        put(self, "temperature", _number("temperature", self.temperature, 0, 1000))
        # vLLM and mlx-lm write "all tokens" as -1.
        top_k = _integer("top_k", self.top_k, -1, 1 << 31)
        put(self, "top_k", 0 if top_k == -1 else top_k)
        put(self, "top_p", _number("top_p", self.top_p, 0, 1))
        put(self, "min_p", _number("min_p", self.min_p, 0, 1))
        put(self, "repetition_penalty", _number("repetition_penalty", self.repetition_penalty, 0, 1000))
        put(self, "presence_penalty", _number("presence_penalty", self.presence_penalty, -2, 2))
        put(self, "frequency_penalty", _number("frequency_penalty", self.frequency_penalty, -2, 2))
        for name in ("top_p", "repetition_penalty"):
            if getattr(self, name) == 0:
                raise ParameterError(f"{name}: must be above 0")
        put(self, "logit_bias", _biases(self.logit_bias))
        put(self, "stop", _stops(self.stop))
        put(self, "stop_token_ids", _token_ids(self.stop_token_ids))
        put(self, "seed", _integer("seed", self.seed, -(1 << 63), (1 << 64) - 1))
        put(self, "logprobs", _integer("logprobs", self.logprobs, 0, MAX_LOGPROBS))
        guesses = _integer("num_speculative_tokens", self.num_speculative_tokens, 0, MAX_GUESSES)
        put(self, "num_speculative_tokens", guesses)
        put(self, "n", _integer("n", self.n, 1, MAX_SAMPLES))
        flag("ignore_eos", self.ignore_eos)

    def __hash__(self) -> int:
        values = (getattr(self, name) for name in field_names(self))
        return hash(tuple(tuple(sorted(v.items())) if isinstance(v, Mapping) else v for v in values))

    def replace(self, **changes: Any) -> SamplingParams:
        """A copy with some parameters changed. ``max_new_tokens`` is taken for ``max_tokens``.

        Raises:
            ParameterError: a name is unknown or a value out of range.
        """
        if "max_new_tokens" in changes:
            if "max_tokens" in changes:
                raise ParameterError("max_new_tokens: is another name of max_tokens; give one of them")
            changes["max_tokens"] = changes.pop("max_new_tokens")
        known = field_names(self)
        for name in changes:
            if name not in known:
                from pocketlm.near import nearest  # only who misspells a name waits for it

                hint = nearest(name, known)
                raise ParameterError(f"{name}: unknown sampling parameter{hint}; known: {', '.join(known)}")
        return replace(self, **changes)

    def over(self, defaults: SamplingParams) -> SamplingParams:
        """This, with what it leaves open taken from ``defaults``."""
        names = (name for name in field_names(self) if getattr(self, name) in (None, ()))
        return replace(self, **{name: getattr(defaults, name) for name in names})


def checked(params: Any) -> SamplingParams:
    """What a caller gives as ``params``; ``None`` leaves all open.

    Raises:
        ParameterError: it is something else.
    """
    if params is not None and not isinstance(params, SamplingParams):
        hint = "; give its items as keywords: **params" if isinstance(params, Mapping) else ""
        raise ParameterError(f"params: expected SamplingParams, not {type(params).__name__}{hint}")
    return params or SamplingParams()


def _integer(name: str, value: Any, least: int, most: int) -> int | None:
    return None if value is None else integer(name, value, least, most)


def _number(name: str, value: Any, least: float, most: float) -> float | None:
    return None if value is None else number(name, value, least, most)


def _stops(value: Any) -> tuple[str, ...]:
    kind = "a string or a sequence of strings"
    strings = [value] if isinstance(value, str) else _items("stop", value, MAX_STOPS, kind)
    for text in strings:
        if not isinstance(text, str) or not 0 < len(text) <= MAX_STOP_LENGTH:
            raise ParameterError(
                f"stop: each must be a string of 1 to {MAX_STOP_LENGTH} characters, not {shown(text)}"
            )
    return tuple(strings)


def _token_ids(value: Any) -> tuple[int, ...]:
    ids = _items("stop_token_ids", value, MAX_BIASES)
    return tuple(integer("stop_token_ids", i, 0, (1 << 32) - 1) for i in ids)


def _biases(value: Any) -> dict[int, float] | None:
    if value is None:
        return None
    if not isinstance(value, Mapping) or len(value) > MAX_BIASES:
        raise ParameterError(f"logit_bias: must be a mapping of at most {MAX_BIASES} token ids to numbers")
    biases = {}
    for token, bias in value.items():
        # JSON, and so OpenAI's form, has only strings for keys.
        key = int(token) if isinstance(token, str) and token.isdecimal() and len(token) < 20 else token
        biases[integer("logit_bias", key, 0, (1 << 32) - 1)] = number("logit_bias", bias, -100, 100)
    return biases


def _items(name: str, value: Any, most: int, kind: str = "a sequence") -> list[Any]:
    if value is None:
        return []
    if isinstance(value, str | bytes | Mapping):
        raise ParameterError(f"{name}: must be {kind}, not {shown(value)}")
    try:
        items = first_of(value, most)
    except TypeError as problem:
        raise ParameterError(f"{name}: must be {kind}, not {shown(value)}") from problem
    if len(items) > most:
        raise ParameterError(f"{name}: must be at most {most}")
    return items


# What remains open after the caller and the model have spoken. max_tokens depends on the context.
NEUTRAL = SamplingParams(
    temperature=1.0,
    top_k=0,
    top_p=1.0,
    min_p=0.0,
    repetition_penalty=1.0,
    presence_penalty=0.0,
    frequency_penalty=0.0,
    num_speculative_tokens=8,
    n=1,
)
