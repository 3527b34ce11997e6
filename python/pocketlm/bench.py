"""Measures a model's speed on this machine, through the interface that everybody uses."""

from __future__ import annotations

import dataclasses
import sys
import time
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pocketlm.assemble import DEFAULT_CONTEXT, load
from pocketlm.clock import Clock
from pocketlm.errors import ParameterError
from pocketlm.model import LM

DEFAULT_PROMPT = 512  # tokens
PROBE_SECONDS = 0.2  # of reading, before and after decoding
_FASTER = 1.5  # than memory: so far apart are no two measurements of it
CHECKED = 32  # tokens that are generated once more


@dataclass(frozen=True)
class Bench:
    """Results. Rates are per second, over all texts of the batch.

    Attributes:
        load_seconds: from the name to a model ready to run.
        ttft_seconds: from the call to the first token after the prompt.
        prefill_tokens_per_second: tokens of the prompt over that time.
        decode_tokens_per_second: tokens generated after the given context.
        peak_memory_bytes: most memory of the process at any time, mapped files included.
        weight_bytes: bytes of weights that one step of decoding reads.
        decode_bytes_per_second: weight_bytes times decode steps per second.
        read_bandwidth_bytes_per_second: at which the threads read the weights where they lie, doing nothing
            else; the larger of two measurements, right before and after decoding. What the processor's
            caches hold is read from there.
        memory_bandwidth_bytes_per_second: at which as many threads read what no cache holds.
        others_cpu: the share of the machine that other processes took meanwhile, from ``/proc/stat``;
            ``None`` where there is none.
        agrees: whether the first text's beginning, run once more, alone and without guesses, has the same
            tokens, as it must.
        threads, isa: threads and instruction set in use.
        kv_dtype: how the cache stores keys and values.
        bits_per_weight_projections, bits_per_weight_all: as ``pocketlm inspect`` counts.
        adapter_bytes: of the attached recovery adapter, which every step reads.
    """

    load_seconds: float
    ttft_seconds: float
    prefill_tokens_per_second: float
    decode_tokens_per_second: float
    peak_memory_bytes: int
    weight_bytes: int
    decode_bytes_per_second: float
    read_bandwidth_bytes_per_second: float
    memory_bandwidth_bytes_per_second: float
    others_cpu: float | None
    agrees: bool
    threads: int
    isa: str
    prompt: int
    generate: int
    context: int
    batch: int
    kv_dtype: str
    bits_per_weight_projections: float
    bits_per_weight_all: float
    adapter_bytes: int

    @property
    def cached(self) -> bool:
        """Whether weights must come from the processor's caches: memory is far slower than they were read."""
        return self.read_bandwidth_bytes_per_second > _FASTER * self.memory_bandwidth_bytes_per_second

    def to_dict(self) -> dict[str, Any]:
        """As plain data, for JSON."""
        return dataclasses.asdict(self)


def run_bench(
    model: str | PathLike[str] | None = None,
    *,
    prompt: int | None = None,
    generate: int = 128,
    context: int = 0,
    batch: int = 1,
    num_speculative_tokens: int = 0,
    threads: int | None = None,
    precise: bool = False,
    kv_dtype: Literal["f16", "int8"] = "f16",
    adapter: Literal["recovery"] | None = "recovery",
) -> Bench:
    """Loads ``model`` and measures it on random tokens; ``prompt`` is 512 where the context has room for
    that. Nothing is guessed unless asked for: greedy texts after random tokens repeat themselves more than
    real ones.

    Raises:
        ParameterError: the sizes do not fit the model's context.
        As :func:`pocketlm.load`.
    """
    # One token more than measured, on both sides: a text cannot be empty, and its first token comes from the
    # prompt.
    first = max(context, 1)
    longest = max((prompt or DEFAULT_PROMPT) + 1, first + generate + 1)
    cache = 2 * batch * (_rounded(first) + _rounded(generate + 1)) + _rounded(prompt or DEFAULT_PROMPT)
    began = time.perf_counter()
    try:
        lm = load(
            model,
            threads=threads,
            precise=precise,
            kv_dtype=kv_dtype,
            context=longest if longest > DEFAULT_CONTEXT else None,
            cache_tokens=cache,
            adapter=adapter,
        )
    except ParameterError as error:
        if not str(error).startswith("context:"):
            raise
        with load(model, adapter=None) as lm:  # what it was made for is known then
            assert lm.loaded is not None
            _check_room(prompt, context, generate, lm.loaded.graph.context_length)
        raise
    load_seconds = time.perf_counter() - began
    with lm:
        _check_room(prompt, context, generate, lm.context)
        prompt = prompt or min(DEFAULT_PROMPT, lm.context - 1)
        random = np.random.default_rng(0)

        def tokens(count: int) -> list[int]:
            return [int(i) for i in random.integers(0, lm.engine.vocab_size, count)]

        _run(lm, [tokens(min(prompt, 64))], 2)  # pages of the weights come in
        clock, own = Clock.started(), time.process_time()
        ttft, _ = _run(lm, [tokens(prompt)], 1)
        beginnings = [tokens(first) for _ in range(batch)]
        if context:
            # Leaves the contexts in the cache, from where the texts go on.
            lm.generate(beginnings, max_tokens=1, temperature=0, ignore_eos=True)
        before = lm.engine.read_bandwidth(PROBE_SECONDS)
        decode, texts = _run(lm, beginnings, generate + 1, num_speculative_tokens, from_first=True)
        after = lm.engine.read_bandwidth(PROBE_SECONDS)
        others = None if clock is None else clock.others(time.process_time() - own)
        again = _run(lm, beginnings[:1], min(generate + 1, CHECKED))[1][0]
        weight_bytes, info = lm.engine.weight_bytes_per_token, lm.info
        return Bench(
            load_seconds=load_seconds,
            ttft_seconds=ttft,
            prefill_tokens_per_second=prompt / ttft,
            decode_tokens_per_second=batch * generate / decode,
            peak_memory_bytes=peak_memory(),
            weight_bytes=weight_bytes,
            decode_bytes_per_second=weight_bytes * generate / decode,
            read_bandwidth_bytes_per_second=max(before, after),
            memory_bandwidth_bytes_per_second=_memory_bandwidth(lm.engine.threads),
            others_cpu=others,
            agrees=again == texts[0][: len(again)],
            threads=lm.engine.threads,
            isa=lm.engine.isa,
            prompt=prompt,
            generate=generate,
            context=context,
            batch=batch,
            kv_dtype=kv_dtype,
            bits_per_weight_projections=info.bits_per_weight_projections,
            bits_per_weight_all=info.bits_per_weight_all,
            adapter_bytes=info.adapter_bytes,
        )


def _memory_bandwidth(threads: int) -> float:
    from pocketlm.profile.machine import measure_bandwidth  # here: not part of the memory that is measured

    return measure_bandwidth(threads)


def _check_room(prompt: int | None, context: int, generate: int, most: int) -> None:
    """Refuses what a model of a context of ``most`` tokens has no room for, naming the arguments.

    Raises:
        ParameterError: it has none.
    """
    room, first = f"with this model's context of {most}", max(context, 1)
    if prompt is not None and prompt >= most:
        raise ParameterError(f"prompt: {prompt} is more than the {most - 1} tokens possible {room}")
    if first + 1 >= most:
        raise ParameterError(f"context: {context} is more than the {max(0, most - 2)} tokens possible {room}")
    if first + generate >= most:
        raise ParameterError(
            f"generate: {generate} is more than the {most - first - 1} tokens possible after a context of "
            f"{context}, {room}"
        )


def _run(
    lm: LM, prompts: list[list[int]], count: int, guesses: int = 0, *, from_first: bool = False
) -> tuple[float, list[list[int]]]:
    """Seconds to generate, with ``from_first`` those after the last text's first token; and the tokens."""
    began = time.perf_counter()
    found = lm.generate(
        prompts, max_tokens=count, temperature=0, ignore_eos=True, num_speculative_tokens=guesses
    )
    seconds = time.perf_counter() - began
    first = max(c.timings.ttft_seconds for c in found) if from_first else 0.0
    return seconds - first, [list(c.tokens) for c in found]


def _rounded(tokens: int) -> int:
    return -(-tokens // 64) * 64 + 64


def peak_memory() -> int:
    """Most bytes that the process has had in memory."""
    try:
        status = Path("/proc/self/status").read_text()
        return 1024 * int(status.split("VmHWM:")[1].split()[0])
    except (OSError, IndexError, ValueError):
        import resource

        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else 1024 * most
