"""The whole path on small random models: a directory in, text out, through the real engine."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

import pocketlm
from checkpoints import write_checkpoint
from fake_engine import FixedPace
from independent.cases import llama
from pocketlm.errors import ConfigError, MemoryLimitError, ParameterError, TokenizerError
from pocketlm.generate.params import SamplingParams
from pocketlm.generate.prefixes import PrefixCache
from tokenizer_files import CHAT, byte_level, save

PROMPTS = ["once upon a time", "the cat sat on the mat " * 5, "a", "naïve café 日本語 " * 3]
KvType = Literal["f16", "int8"]
PARAMS = SamplingParams(max_tokens=12, temperature=1.0, seed=11, ignore_eos=True)


def make(directory: Path, extra: int = 3, **config: int) -> Path:
    """A checkpoint with a tokenizer, whose embedding has ``extra`` rows more than that has tokens."""
    tokenizer = byte_level()
    vocab_size = tokenizer.get_vocab_size() + extra
    write_checkpoint(directory, llama(vocab_size=vocab_size, eos_token_id=1, **config))
    return save(directory, tokenizer)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module", params=["f16", "int8"])
def kv_dtype(request: pytest.FixtureRequest) -> KvType:
    found: KvType = request.param
    return found


@pytest.fixture(scope="module")
def lm(directory: Path, kv_dtype: KvType) -> Iterator[pocketlm.LM]:
    with pocketlm.load(directory, kv_dtype=kv_dtype) as model:
        yield model


def test_same_seed_same_tokens_whatever_else_runs(lm: pocketlm.LM, directory: Path, kv_dtype: KvType) -> None:
    singles = []
    for prompt in PROMPTS:
        lm._scheduler._prefixes.clear()
        singles.append(lm.generate(prompt, PARAMS).tokens)
    assert len(set(singles)) == len(PROMPTS)
    lm._scheduler._prefixes.clear()
    assert [c.tokens for c in lm.generate(PROMPTS, PARAMS)] == singles
    again = lm.generate(PROMPTS, PARAMS)
    assert [c.tokens for c in again] == singles and all(
        c.usage.reused_tokens for c in again if c.usage.prompt_tokens > 9
    )
    with pocketlm.load(directory, threads=1, cache_tokens=512, kv_dtype=kv_dtype) as other:
        other._scheduler._pace = FixedPace(3)
        assert [c.tokens for c in other.generate(PROMPTS, PARAMS)] == singles
    assert lm.generate(PROMPTS[0], PARAMS, seed=12).tokens != singles[0]


def test_logits_of_generated_text_are_those_it_was_sampled_from(lm: pocketlm.LM) -> None:
    found = lm.generate(PROMPTS[0], max_tokens=8, temperature=0, logprobs=3, ignore_eos=True)
    prompt = lm.tokenizer.encode(PROMPTS[0])
    logits = lm.logits([*prompt, *found.tokens])[len(prompt) - 1 : -1]
    assert tuple(logits.argmax(-1)) == found.tokens
    score = lm.score(prompt, list(found.tokens))
    assert score.greedy and found.logprobs is not None
    assert np.allclose([entry.logprob for entry in found.logprobs], score.logprobs, atol=1e-5, rtol=0)
    assert all(entry.top[0] == (entry.token, entry.logprob) for entry in found.logprobs)


def test_session_reuses_and_equals_fresh(lm: pocketlm.LM, monkeypatch: pytest.MonkeyPatch) -> None:
    def talk() -> list[pocketlm.Completion]:
        with lm.session("Be brief.", PARAMS) as chat:
            return [chat.respond(f"once upon a time, turn {i}") for i in range(3)]

    found = talk()
    monkeypatch.setattr(PrefixCache, "take", lambda *_: None)
    fresh = talk()
    assert [c.text for c in found] == [c.text for c in fresh]
    assert [c.usage.reused_tokens for c in fresh] == [0, 0, 0]
    assert found[1].usage.reused_tokens > 10 < found[2].usage.reused_tokens


def test_streams_from_threads_and_tasks_together(lm: pocketlm.LM) -> None:
    expected = [lm.generate(prompt, PARAMS).text for prompt in PROMPTS]
    found: dict[int, str] = {}

    def work(index: int) -> None:
        found[index] = "".join(chunk.text for chunk in lm.stream(PROMPTS[index], PARAMS))

    async def read(index: int) -> str:
        return "".join([chunk.text async for chunk in lm.stream(PROMPTS[index], PARAMS)])

    async def gather() -> list[str]:
        return await asyncio.gather(*map(read, range(len(PROMPTS))))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(PROMPTS))]
    for thread in threads:
        thread.start()
    assert asyncio.run(gather()) == expected
    for thread in threads:
        thread.join(60)
    assert [found[i] for i in range(len(PROMPTS))] == expected


def test_memory_comes_back(lm: pocketlm.LM) -> None:
    lm._scheduler._prefixes.clear()
    before = lm.engine.cache_tokens_free
    lm.generate(PROMPTS, PARAMS)
    with lm.stream("once", PARAMS) as stream:
        next(stream)
    lm._scheduler._prefixes.clear()
    assert lm.engine.cache_tokens_free == before


def test_int8_cache_takes_less_and_says_nearly_the_same(directory: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("once upon a time there was a little girl. " * 30)
    with pocketlm.load(directory) as full, pocketlm.load(directory, kv_dtype="int8") as small:
        memory = [m.engine.memory() for m in (full, small)]
        assert memory[1]["cache"] < 0.8 * memory[0]["cache"] and memory[1]["scratch"] == memory[0]["scratch"]
        a, b = (m.perplexity(text, context=64) for m in (full, small))
        assert a.nll != b.nll and abs(a.nll / b.nll - 1) < 0.01


def test_palettized_model_of_the_same_directory(directory: Path, tmp_path: Path) -> None:
    report = pocketlm.palettize(directory, tmp_path / "small", bits=4, progress=False)
    with pocketlm.load(tmp_path / "small") as small, pocketlm.load(directory) as full:
        kinds = {tensor.kind for tensor in small.info.tensors}
        assert {"p4", "p8"} <= kinds
        assert small.info.bits_per_weight_all == pytest.approx(report.bits_per_weight_all)
        assert small.info.bits_per_weight_projections == pytest.approx(report.bits_per_weight_projections)
        assert small.info.bytes < full.info.bytes
        assert len(small.generate(PROMPTS[0], PARAMS).tokens) == 12
        text = tmp_path / "text.txt"
        text.write_text("once upon a time there was a little girl. " * 30)
        a, b = (m.perplexity(text, context=64) for m in (small, full))
        assert a.tokens == b.tokens and a.bytes == b.bytes and abs(a.nll / b.nll - 1) < 0.05


def test_what_cannot_be_loaded_is_refused(directory: Path, tmp_path: Path) -> None:
    for options in (
        {"threads": 0},
        {"context": 0},
        {"context": 10**6},
        {"max_memory": 0},
        {"cache_tokens": True},
        {"kv_dtype": "f8"},
    ):
        with pytest.raises(ParameterError, match=next(iter(options))):
            pocketlm.load(directory, **options)  # type: ignore[arg-type]
    with pytest.raises(MemoryLimitError):
        pocketlm.load(directory, max_memory=1000)
    short = make(tmp_path / "short", extra=-1)
    with pytest.raises(TokenizerError, match="embedding"):
        pocketlm.load(short)
    odd = make(tmp_path / "odd")
    (odd / "generation_config.json").write_text(json.dumps({"num_beams": 4}))
    with pytest.raises(ConfigError, match="num_beams"):
        pocketlm.load(odd)
    (odd / "generation_config.json").write_text(json.dumps({"do_sample": False, "max_new_tokens": 3}))
    with pocketlm.load(odd) as lm:
        assert len(lm.generate("once", ignore_eos=True).tokens) == 3


def test_what_is_wrong_with_one_text_is_no_other_texts_failure(lm: pocketlm.LM) -> None:
    free = SamplingParams(max_tokens=30, seed=3, ignore_eos=True)
    expected = lm.generate([5], free)
    # The penalty makes logits infinite, which only sampling finds.
    bad = free.replace(repetition_penalty=1e-38, logit_bias={6: 50.0})
    with pytest.raises(ParameterError, match="repetition_penalty"):
        lm.generate([6], bad)
    good, failing = lm.stream([5], free), lm.stream([6], bad)
    with pytest.raises(ParameterError, match="repetition_penalty"):
        failing.result()
    assert good.result().tokens == expected.tokens
    with pytest.raises(ParameterError, match="repetition_penalty"):
        lm.generate([[5], [6], [7]], [free, bad, free])
    assert lm.generate([[5], [6]], free)[0].tokens == expected.tokens


def test_fork_leaves_a_usable_child(directory: Path) -> None:
    # In a process of its own: others of this test run may have started threads that do not survive a fork.
    script = """
import os, sys, pocketlm
with pocketlm.load(sys.argv[1], threads=2) as lm:
    params = pocketlm.SamplingParams(max_tokens=12, seed=3)
    expected = lm.generate("once", params).tokens
    child = os.fork()
    if child == 0:
        os._exit(0 if lm.generate("once", params).tokens == expected else 3)
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert subprocess.run([sys.executable, "-c", script, str(directory)], timeout=120).returncode == 0


def command(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pocketlm", *args], capture_output=True, text=True, timeout=120
    )


def test_commands_on_a_real_model(directory: Path, tmp_path: Path) -> None:
    name, small = str(directory), str(tmp_path / "small")
    found = command("palettize", name, small, "--bits", "3.5", "--json")
    assert found.returncode == 0, found.stderr
    assert 3.4 < json.loads(found.stdout)["bits_per_weight_projections"] < 8
    bench = json.loads(
        command("bench", small, "--prompt", "20", "--generate", "5", "--batch", "2", "--json").stdout
    )
    assert {
        "load_seconds",
        "ttft_seconds",
        "prefill_tokens_per_second",
        "decode_tokens_per_second",
        "peak_memory_bytes",
        "weight_bytes",
        "decode_bytes_per_second",
        "read_bandwidth_bytes_per_second",
        "memory_bandwidth_bytes_per_second",
        "threads",
        "isa",
    } <= bench.keys()
    zero = ("isa", "context", "kv_dtype", "adapter_bytes", "others_cpu")
    assert all(bench[key] > 0 for key in bench if key not in zero) and bench["agrees"] is True
    assert bench["others_cpu"] is None or 0 <= bench["others_cpu"] <= 1
    said = command("bench", small, "--prompt", "20", "--generate", "5", "--context", "30").stdout
    assert "tokens/s" in said and "same tokens again    yes" in said and "reading alone        " in said
    inspected = json.loads(command("inspect", small, "--json").stdout)
    assert {
        "parameters",
        "bits_per_weight_projections",
        "bits_per_weight_all",
        "bytes",
        "tensors",
    } <= inspected.keys()
    assert {"name", "kind", "shape", "bits", "bytes"} <= inspected["tensors"][0].keys()
    assert "bits per weight" in command("inspect", small).stdout
    text = tmp_path / "text.txt"
    text.write_text("once upon a time " * 50)
    assert (
        json.loads(command("perplexity", small, str(text), "--context", "64", "--json").stdout)["bytes"]
        == 850
    )
    generated = command("generate", "once", "--model", small, "--max-tokens", "5", "--json")
    assert len(json.loads(generated.stdout)["tokens"]) <= 5
    doctor = command("doctor", "--quick", "--json")
    assert doctor.returncode == 0, doctor.stderr
    assert {"levels", "isa", "isa_notes", "kernels", "threads", "problems"} <= json.loads(
        doctor.stdout
    ).keys()
    assert any(row["chosen"] for row in json.loads(doctor.stdout)["kernels"])


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"context": 200, "generate": 56}, "generate: 56 is more than the 55 tokens possible after"),
        ({"generate": 255}, "generate: 255 is more than the 254 tokens possible after a context of 0"),
        ({"context": 255, "generate": 1}, "context: 255 is more than the 254 tokens"),
        ({"context": 5000}, "context: 5000 is more than the 254 tokens"),
        ({"prompt": 256, "generate": 1}, "prompt: 256 is more than the 255 tokens"),
        ({"prompt": 5000, "generate": 1}, "prompt: 5000 is more than the 255 tokens"),
    ],
)
def test_bench_says_what_there_is_room_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sizes: dict[str, int], words: str
) -> None:
    from pocketlm import bench

    model = make(tmp_path / "m", max_position_embeddings=256)
    with pytest.raises(ParameterError, match=f"^{words}"):
        bench.run_bench(model, threads=1, **sizes)
    if "generate" in sizes and "prompt" not in sizes and sizes["generate"] > 1:
        # One less fits; and what it says of the caches is what it measured.
        monkeypatch.setattr(bench, "_memory_bandwidth", lambda threads: 1.0)
        found = bench.run_bench(model, threads=1, **{**sizes, "generate": sizes["generate"] - 1})
        assert found.cached
        slow = found.read_bandwidth_bytes_per_second
        assert not dataclasses.replace(found, memory_bandwidth_bytes_per_second=slow).cached


def test_chat_template_of_the_directory_is_used(lm: pocketlm.LM) -> None:
    assert lm.tokenizer.template is not None and lm.tokenizer.template.source == CHAT
