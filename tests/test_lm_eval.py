"""The harness's model against ``hf``'s semantics, spelled out here over float64 logits of the reference
interpreter; then through the harness itself, where it is installed (``make test-eval``)."""

from __future__ import annotations

import importlib
import importlib.util
import json
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pocketlm
from checkpoints import weights, write_checkpoint
from fake_engine import FakeEngine, FakeSampler
from independent.cases import llama
from pocketlm.errors import ParameterError, UnsupportedError, WeightError
from pocketlm.evaluate.generation import MAX_GEN_TOKS, generation
from pocketlm.evaluate.harness import Harness, rolling
from pocketlm.families import build_graph
from pocketlm.interpret.reference import Reference
from pocketlm.model import LM
from pocketlm.tokenizer import Tokenizer
from tokenizer_files import byte_level, metaspace, save

TASKS = Path(__file__).parent / "lm_eval_tasks"
INSTALLED = importlib.util.find_spec("lm_eval") is not None
Logits = Callable[[list[int]], np.ndarray]
LENGTH = 24  # tokens that the model reads, so that texts are cut and rolled


def docs(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (TASKS / f"{name}.jsonl").read_text().splitlines()]


CHOICES = [(doc["question"], f" {choice}") for doc in docs("choice") for choice in doc["choices"]]
ODD = [
    ("", "once upon"),
    ("once upon ", "a time"),
    ("the cat  ", " sat"),
    ("<|bos|>the", " cat"),
    ("   ", "a"),
]


class Plain:
    """The semantics of the harness's ``hf`` model, one token after the other, one request at a time."""

    def __init__(self, logits: Logits, tokenizer: Tokenizer, length: int) -> None:
        self.logits, self.tokenizer, self.length = logits, tokenizer, length

    def encode(self, text: str) -> list[int]:
        starts = self.tokenizer.bos is not None and text.startswith(self.tokenizer.token_text(self.prefix))
        return self.tokenizer.encode(text, bos=not starts)

    @property
    def prefix(self) -> int:
        bos = self.tokenizer.bos
        return bos if bos is not None else min(self.tokenizer.eos)

    def score(self, context: list[int], continuation: list[int]) -> tuple[float, bool]:
        read = (context + continuation)[-(self.length + 1) :][:-1]
        rows = np.asarray(self.logits(read), np.float64)[-len(continuation) :]
        rows = rows - rows.max(-1, keepdims=True)
        logprobs = rows - np.log(np.exp(rows).sum(-1, keepdims=True))
        chosen = logprobs[np.arange(len(continuation)), continuation]
        return float(chosen.sum()), [int(i) for i in logprobs.argmax(-1)] == continuation

    def loglikelihood(self, context: str, continuation: str) -> tuple[float, bool]:
        if context == "":
            ids = self.tokenizer.encode(continuation, bos=False)
            if ids[0] == self.prefix:
                return self.score(ids[:1], ids[1:])
            return self.score([self.prefix], ids)
        spaces = len(context) - len(context.rstrip())
        if spaces:
            context, continuation = context[:-spaces], context[-spaces:] + continuation
        whole, head = self.encode(context + continuation), self.encode(context)
        return self.score(head or [self.prefix], whole[len(head) :])

    def rolling(self, text: str) -> float:
        ids, total = self.encode(text), 0.0
        done = min(self.length, len(ids))
        if not ids:
            return 0.0
        total += self.score([self.prefix], ids[:done])[0]
        while done < len(ids):
            end = min(done + self.length, len(ids))
            read = ids[end - self.length - 1 : end - 1]
            new = ids[done:end]
            total += self.score(read[: len(read) - (len(new) - 1)], new)[0]
            done = end
        return total

    def generate(self, context: str, until: list[str], most: int) -> str:
        ids = self.encode(context)[-(self.length - most) :]
        made: list[int] = []
        while len(made) < most:
            token = int(np.asarray(self.logits(ids + made))[-1].argmax())
            made.append(token)
            text = self.tokenizer.decode(made)
            if token in self.tokenizer.eos or any(stop in text for stop in until):
                break
        text = self.tokenizer.decode(made)
        for stop in until:
            text = text.split(stop)[0]
        return text


def make(directory: Path, **changes: Any) -> tuple[Path, Logits]:
    """A checkpoint, and its logits by the reference interpreter in float64."""
    tokenizer = byte_level()
    config = llama(vocab_size=tokenizer.get_vocab_size(), eos_token_id=1, **changes)
    arrays = weights(config, seed=3)
    write_checkpoint(directory, config, arrays)
    return save(directory, tokenizer), Reference(build_graph(config), arrays, np.float64).logits


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LM, Plain]]:
    directory, logits = make(tmp_path_factory.mktemp("models") / "tiny")
    with pocketlm.load(directory) as lm:
        yield lm, Plain(logits, lm.tokenizer, LENGTH)


def fake(tokenizer: Any, **config: str) -> tuple[LM, Logits]:
    wrapped = Tokenizer(tokenizer, config=config)
    engine = FakeEngine(wrapped.size)
    lm = LM(engine, wrapped, FakeSampler)  # type: ignore[arg-type]
    return lm, lambda ids: np.stack([engine.logits(list(ids[: i + 1])) for i in range(len(ids))])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_no_scores(bad: float) -> None:
    lm, _ = fake(byte_level(), bos_token="<|bos|>", eos_token="<|end|>")
    real = lm.engine.logits  # type: ignore[attr-defined]

    def logits(ids: list[int]) -> np.ndarray:
        found: np.ndarray = real(ids).copy()
        if len(ids) > 3:
            found[...] = bad
        return found

    lm.engine.logits = logits  # type: ignore[attr-defined]
    with lm:
        harness = Harness(lm, max_length=LENGTH)
        assert np.isfinite(harness.loglikelihood([("", "a")])[0][0])
        with pytest.raises(WeightError, match="logits that are not finite"):
            harness.loglikelihood(CHOICES)
        with pytest.raises(WeightError, match="logits that are not finite"):
            harness.loglikelihood_rolling(["the cat sat"])


TOKENIZERS = {
    "bos": lambda: fake(byte_level(), bos_token="<|bos|>", eos_token="<|end|>"),
    "no bos": lambda: fake(byte_level(bos=False), eos_token="<|end|>"),
    "metaspace": lambda: fake(metaspace(), bos_token="<s>", eos_token="</s>"),
}


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_scores_are_those_of_hf(kind: str) -> None:
    lm, logits = TOKENIZERS[kind]()
    with lm:
        harness, plain = Harness(lm, max_length=LENGTH, together=4), Plain(logits, lm.tokenizer, LENGTH)
        requests = [*CHOICES, *(pair for pair in ODD if "<|bos|>" not in pair[0] or kind == "bos")]
        done: list[int] = []
        found = harness.loglikelihood(requests, done.append)
        assert sum(done) == len(requests)
        for request, (total, greedy) in zip(requests, found, strict=True):
            expected = plain.loglikelihood(*request)
            assert total == pytest.approx(expected[0], rel=1e-9) and greedy == expected[1], request
        # What greedy decoding says is recognised.
        ids = lm.tokenizer.encode("once upon")
        best = int(logits(ids)[-1].argmax())
        assert harness.score([(ids, [best]), (ids, [best + 1 if best < 9 else 2])])[0][1]


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_rolling_scores_are_those_of_hf(kind: str) -> None:
    lm, logits = TOKENIZERS[kind]()
    texts = [doc["text"] for doc in docs("rolling")] + ["", "a"]
    with lm:
        for length in (5, LENGTH, 200):
            harness, plain = Harness(lm, max_length=length), Plain(logits, lm.tokenizer, length)
            expected = [plain.rolling(text) for text in texts]
            assert harness.loglikelihood_rolling(texts) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_greedy_texts_are_those_of_hf(kind: str) -> None:
    lm, logits = TOKENIZERS[kind]()
    prompts = [doc["prompt"] for doc in docs("generate")] + ["<|bos|>the cat"] * (kind == "bos")
    with lm:
        harness, plain = Harness(lm, max_length=LENGTH), Plain(logits, lm.tokenizer, LENGTH)
        for until in ([], ["a"], ["e", "\n", ""], "t"):
            stops = [until] if isinstance(until, str) else [text for text in until if text]
            found = harness.generate_until([(p, {"until": until, "max_gen_toks": 12}) for p in prompts])
            assert found == [plain.generate(prompt, stops, 12) for prompt in prompts]


def test_windows_predict_every_token_once() -> None:
    for count in range(1, 30):
        windows = list(rolling(range(100, 100 + count), 7, 8))
        assert [i for _, new in windows for i in new] == list(range(100, 100 + count))
        assert windows[0][0] == [7] and all(len(old) + len(new) <= 9 and old for old, new in windows)
        assert all(len(old) + len(new) == 9 for old, new in windows[1:])


def test_generation_arguments() -> None:
    params, until = generation({}, 5)
    assert (params.max_tokens, params.temperature, params.seed, until) == (MAX_GEN_TOKS, 0, 5, [])
    assert generation({"do_sample": True}, 0)[0].temperature == 1
    for name in ("do_sample", "until", "max_gen_toks"):
        with pytest.raises(ParameterError, match=f"^{name}: "):
            generation({name: 10**5000}, 0)
    assert generation({"temperature": 0.7}, 0)[0].temperature == 0.7
    assert generation({"do_sample": False, "temperature": 0.7}, 0)[0].temperature == 0
    assert generation({"max_gen_toks": 32.0, "until": ("a", "")}, 0)[0].max_tokens == 32
    assert generation({"until": ""}, 0)[1] == generation({"until": []}, 0)[1] == []
    params, until = generation({"until": "x", "max_new_tokens": "9", "top_p": 0.5, "top_k": None}, 0)
    assert until == ["x"] and (params.max_tokens, params.top_p, params.top_k) == (9, 0.5, None)
    for bad in ({"num_beams": 4}, {"fly": 1}, {"top_p": 2}, {"max_tokens": 0}, {"temperature": "warm"}):
        with pytest.raises(ParameterError, match=next(iter(bad))):
            generation(bad, 0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        *(
            ({name: value}, f"{name}: must be a whole number of tokens")
            for name in ("max_gen_toks", "max_new_tokens", "max_tokens")
            for value in ("abc", "", float("inf"), float("nan"), -1, 0, 2.5, True, [9], 1 << 40, "9" * 5000)
        ),
        *(
            ({"until": value}, "until: must be a string")
            for value in (3, ["a", None], {"a": 1}, [["a"]], True)
        ),
        ({"do_sample": "maybe"}, "do_sample: must be true or false"),
        ({"temperature": "warm"}, "temperature: must be a number"),
        ({"top_p": "half"}, "top_p: must be a number"),
        ({3: 1, "fly": 2}, "3: unknown generation argument"),
        (None, "generation arguments: must be a mapping"),
        ("until", "generation arguments: must be a mapping"),
    ],
)
def test_generation_arguments_that_make_no_sense_are_named(arguments: Any, words: str) -> None:
    with pytest.raises(ParameterError, match=f"^{words}"):
        generation(arguments, 0)
    lm, _ = TOKENIZERS["bos"]()
    good = ("x", {"max_gen_toks": 4})
    with lm, pytest.raises(ParameterError, match=f"^request 1: {words}"):
        Harness(lm, max_length=LENGTH).generate_until([good, ("x", arguments)])


def test_texts_stop_at_any_number_of_strings() -> None:
    """The engine looks for some of them; the text is cut at the others too."""
    lm, logits = TOKENIZERS["bos"]()
    prompts = [doc["prompt"] for doc in docs("generate")]
    none = [f"<never {i}>" for i in range(100)]
    long = "x" * 5000
    with lm:
        harness, plain = Harness(lm, max_length=LENGTH), Plain(logits, lm.tokenizer, LENGTH)
        for until in ([*none, "a"], ["e", *none, "\n"], [long, *none[:70], "t", long], tuple(none)):
            found = harness.generate_until([(p, {"until": until, "max_gen_toks": 12}) for p in prompts])
            assert found == [plain.generate(prompt, list(until), 12) for prompt in prompts]
        params, kept = generation({"until": [long, *none]}, 0)
        assert len(params.stop) == 64 and kept == [long, *none]


def test_sampled_texts_depend_on_seed_and_place() -> None:
    lm, _ = TOKENIZERS["bos"]()
    request = ("once", {"do_sample": True, "max_gen_toks": 8})
    with lm:
        first, second = Harness(lm).generate_until([request] * 2)
        assert first != second
        assert Harness(lm, together=1).generate_until([request] * 2) == [first, second]
        assert Harness(lm, seed=9).generate_until([request])[0] != first


def test_what_cannot_be_done_is_named() -> None:
    lm, _ = TOKENIZERS["bos"]()
    with lm:
        harness = Harness(lm, max_length=LENGTH)
        for part, work in (
            ("adds no token", lambda: harness.loglikelihood([("once", "")])),
            ("continuation: .* 24 at most", lambda: harness.loglikelihood([("x", "b " * 40)])),
            ("no room", lambda: harness.generate_until([("x", {})])),
            ("max_length", lambda: Harness(lm, max_length=257)),
            ("batch_size", lambda: Harness(lm, together=0)),
        ):
            with pytest.raises(ParameterError, match=part):
                work()
    nameless, _ = fake(byte_level(bos=False))
    with nameless, pytest.raises(ParameterError, match="begins or ends"):
        Harness(nameless)


def test_scores_agree_with_the_reference_in_float64(real: tuple[LM, Plain]) -> None:
    """The engine keeps keys and values in float16: 2^-11 of each, so some 1e-3 of a log-probability."""
    lm, plain = real
    harness = Harness(lm, max_length=LENGTH)
    requests = [*CHOICES, *ODD]
    for request, (total, greedy) in zip(requests, harness.loglikelihood(requests), strict=True):
        expected = plain.loglikelihood(*request)
        assert total == pytest.approx(expected[0], abs=0.01) and greedy == expected[1], request
    texts = [doc["text"] for doc in docs("rolling")]
    expected_rolling = [plain.rolling(text) for text in texts]
    assert harness.loglikelihood_rolling(texts) == pytest.approx(expected_rolling, rel=1e-3)
    prompts = [doc["prompt"] for doc in docs("generate")]
    arguments = {"until": ["a", "\n"], "max_gen_toks": 12}
    found = harness.generate_until([(prompt, arguments) for prompt in prompts])
    assert found == [plain.generate(prompt, ["a", "\n"], 12) for prompt in prompts]


def test_importing_pocketlm_does_not_import_the_harness() -> None:
    code = "import sys, pocketlm; pocketlm.load, pocketlm.LM; assert 'lm_eval' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


class Hook:
    def __init__(self) -> None:
        self.kept: list[tuple[str, Any, Any]] = []

    def add_partial(self, kind: str, request: Any, answer: Any) -> None:
        self.kept.append((kind, request, answer))


class StandIn:
    """What the model needs of the harness's base class."""

    def __init__(self) -> None:
        self.cache_hook = Hook()


def import_model(monkeypatch: pytest.MonkeyPatch, stand_in: bool) -> Any:
    """``pocketlm.lm_eval``, with the harness or with a stand-in for what it imports of it."""
    registered: dict[str, Any] = {}
    if stand_in:
        names = ("lm_eval", "lm_eval.api", "lm_eval.api.model", "lm_eval.api.registry")
        modules: dict[str, Any] = {name: types.ModuleType(name) for name in names}
        modules["lm_eval.api"].model = modules["lm_eval.api.model"]
        modules["lm_eval.api.model"].LM = StandIn
        modules["lm_eval.api.registry"].register_model = lambda name: lambda c: registered.setdefault(name, c)
        for name, module in modules.items():
            monkeypatch.setitem(sys.modules, name, module)
    sys.modules.pop("pocketlm.lm_eval", None)
    module = importlib.import_module("pocketlm.lm_eval")
    del sys.modules["pocketlm.lm_eval"]  # the next test is to import it anew
    assert not stand_in or registered == {"pocketlm": module.HarnessLM}
    return module.HarnessLM


def test_model_class_over_a_stand_in(real: tuple[LM, Plain], monkeypatch: pytest.MonkeyPatch) -> None:
    lm, _ = real
    model = import_model(monkeypatch, stand_in=True)(lm, batch_size=1, max_length=LENGTH, device="cpu")

    def instances(arguments: Any) -> list[Any]:
        return [types.SimpleNamespace(args=args) for args in arguments]

    pairs, texts = CHOICES[:3], [(doc["text"],) for doc in docs("rolling")]
    asked = [("once", {"max_gen_toks": 5})]
    scores = model.loglikelihood(instances(pairs), disable_tqdm=True)
    assert scores == model.harness.loglikelihood(pairs)
    assert len(model.loglikelihood_rolling(instances(texts), disable_tqdm=True)) == 3
    made = model.generate_until(instances(asked), disable_tqdm=True)
    kept = model.cache_hook.kept
    assert [kind for kind, *_ in kept] == 3 * ["loglikelihood"] + 3 * ["loglikelihood_rolling"] + [
        "generate_until"
    ]
    assert kept[0] == ("loglikelihood", pairs[0], scores[0]) and kept[-1] == (
        "generate_until",
        *asked,
        made[0],
    )
    talk = [{"role": "user", "content": "once upon"}, {"role": "assistant", "content": "a time"}]
    assert model.apply_chat_template(talk).endswith("<|assistant|>")
    assert model.apply_chat_template(talk, add_generation_prompt=False).endswith("<|assistant|>a time")
    assert "<|end|>" in model.chat_template(True) and model.chat_template(False) is None
    assert model.tokenizer_name == "tiny"
    for options in (
        {"fly": 1},
        {"batch_size": "many"},
        {"batch_size": 0},
        {"batch_size": "9" * 5000},
        {"batch_size": 10**5000},
        {"max_length": 10**6},
    ):
        with pytest.raises(ParameterError, match=next(iter(options))):
            type(model)(lm, **options)


@pytest.mark.skipif(INSTALLED, reason="lm-eval is installed")
def test_without_the_harness_the_error_says_what_to_install() -> None:
    with pytest.raises(UnsupportedError, match=r"pocketlm\[eval\]"):
        importlib.import_module("pocketlm.lm_eval")


@pytest.mark.skipif(not INSTALLED, reason="lm-eval is not installed (make test-eval runs this)")
@pytest.mark.filterwarnings("default")
def test_local_tasks_through_the_harness(
    real: tuple[LM, Plain], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_HOME", "HF_DATASETS_CACHE"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(TASKS)  # the tasks name their data by relative paths
    lm, plain = real
    model_class = import_model(monkeypatch, stand_in=False)
    import lm_eval
    from lm_eval.api.registry import get_model
    from lm_eval.tasks import TaskManager

    assert get_model("pocketlm") is model_class

    names = ["pocketlm_choice", "pocketlm_rolling", "pocketlm_generate"]
    found = lm_eval.simple_evaluate(
        model=model_class(lm, max_length=LENGTH),
        tasks=names,
        task_manager=TaskManager(include_path=str(TASKS), include_defaults=False),
        log_samples=True,
        bootstrap_iters=0,
    )
    hits, by_length = [], []
    for doc in docs("choice"):
        scores = [plain.loglikelihood(doc["question"], f" {choice}")[0] for choice in doc["choices"]]
        per_character = [s / len(choice) for s, choice in zip(scores, doc["choices"], strict=True)]
        hits.append(int(np.argmax(scores)) == doc["answer"])
        by_length.append(int(np.argmax(per_character)) == doc["answer"])
    results = found["results"]
    assert results[names[0]]["acc,none"] == np.mean(hits)
    assert results[names[0]]["acc_norm,none"] == np.mean(by_length)
    texts = [doc["text"] for doc in docs("rolling")]
    total = sum(plain.rolling(text) for text in texts)
    size = sum(len(text.encode()) for text in texts)
    assert results[names[1]]["bits_per_byte,none"] == pytest.approx(-total / np.log(2) / size, rel=1e-3)
    samples = {s["doc"]["prompt"]: s["resps"][0][0] for s in found["samples"][names[2]]}
    expected = {doc["prompt"]: plain.generate(doc["prompt"], ["a", "\n"], 12) for doc in docs("generate")}
    assert samples == expected
