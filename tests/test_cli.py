"""The command line: what it prints, and the status it ends with. The model is a fake."""

from __future__ import annotations

import io
import json
import signal
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from rich.console import Console

from fake_engine import FakeEngine, FakeSampler
from pocketlm.bar import Bar
from pocketlm.cli import run
from pocketlm.cli.chat import _answer
from pocketlm.cli.group import COMMANDS, cli
from pocketlm.errors import WeightError
from pocketlm.kinds import PALETTES
from pocketlm.model import LM
from pocketlm.tokenizer import Tokenizer
from terminals import Terminal
from tokenizer_files import CHAT, byte_level

CONFIG = {"bos_token": "<|bos|>", "eos_token": "<|end|>"}


class Loaded:
    """Stands in for :mod:`pocketlm.assemble`; remembers what was asked for."""

    def __init__(self) -> None:
        self.template: str | None = CHAT
        self.calls: list[tuple[Any, dict[str, Any]]] = []
        self.before_step: Any = lambda: None

    def load(self, model: Any = None, **settings: Any) -> LM:
        self.calls.append((model, settings))
        tokenizer = Tokenizer(byte_level(), config=CONFIG, template=self.template)
        engine = FakeEngine(tokenizer.size)
        engine.before_step = self.before_step
        return LM(engine, tokenizer, FakeSampler, name="fake")  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def _interrupts() -> Iterator[None]:
    """What is interrupted ignores the next signals; the tests go on."""
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> Loaded:
    fake = Loaded()
    module: Any = types.ModuleType("pocketlm.assemble")
    module.load, module.BUNDLED = fake.load, Path("/nowhere/bundled")
    monkeypatch.setitem(sys.modules, "pocketlm.assemble", module)
    monkeypatch.delenv("POCKETLM_DEBUG", raising=False)
    return fake


def call(*args: str, stdin: str = "") -> tuple[int, str, str]:
    """Exit status, standard output and standard error of a command line."""
    out, err, saved = (
        io.TextIOWrapper(io.BytesIO(), "utf-8"),
        io.StringIO(),
        (sys.stdin, sys.stdout, sys.stderr),
    )
    sys.stdin, sys.stdout, sys.stderr = io.StringIO(stdin), out, err
    try:
        status = run(args)
        out.flush()
        return status, out.buffer.getvalue().decode(), err.getvalue()  # type: ignore[attr-defined]
    finally:
        sys.stdin, sys.stdout, sys.stderr = saved


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example(command: str) -> None:
    result = CliRunner().invoke(cli, [command, "--help"])
    assert result.exit_code == 0 and "Example" in result.output and f"pocketlm {command}" in result.output
    assert "--json" in result.output


def test_help_names_every_kind() -> None:
    result = CliRunner().invoke(cli, ["palettize", "--help"])
    assert f"{', '.join(PALETTES)}, keep, or bits" in " ".join(result.output.split())


@pytest.mark.parametrize("command", [(), *((name,) for name in COMMANDS)])
def test_help_fits_a_terminal(command: tuple[str, ...]) -> None:
    result = CliRunner().invoke(cli, [*command, "--help"], terminal_width=80)
    assert not [line for line in result.output.splitlines() if len(line) > 80]


def test_without_anything_there_is_help() -> None:
    status, out, err = call()
    assert status == 0 and err == "" and out == call("--help")[1] and out.count("\n") > 20


def test_the_end_says_when_text_was_cut(loaded: Loaded) -> None:
    said = call("generate", "x", "--max-tokens", "4", "--ignore-eos")[2]
    assert said.startswith("[cut after 4 tokens (--max-tokens), ")
    assert "tokens (the context is full)" in call("generate", "x", "--ignore-eos")[2]


def test_chat_says_when_an_answer_was_cut(loaded: Loaded) -> None:
    shown = Console(file=io.StringIO(), force_terminal=True, color_system=None, width=200)
    with loaded.load() as lm, lm.session(ignore_eos=True) as session:
        _answer(session.stream_response("x", max_tokens=4), shown, lm.context)
        _answer(session.stream_response("y"), shown, lm.context)
    said = shown.file.getvalue()  # type: ignore[attr-defined]
    assert "\ncut after 4 tokens (--max-tokens), " in said and "tokens (the context is full), " in said


def test_an_interrupted_palettize_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pocketlm.palettize.palettize", stop)
    status, _, err = call("palettize", "src", "dst")
    assert status == 130 and "the same command goes on" in err and "interrupted" in err


def test_an_interrupted_dry_run_says_what_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pocketlm.palettize.plan", stop)
    (tmp_path / "stored").mkdir()
    (tmp_path / "text").write_text("some text")
    for given, told in (
        ((), "keeps nothing"),
        (("--calibration", "text"), "keeps nothing"),
        (("--calibration", "stored"), "keeps only the calibration in stored"),
        (("--calibration", "text", "--calibration-out", "new"), "keeps only the calibration in new"),
        (("--recipe-out", "r.json"), "the same command goes on from here"),
    ):
        monkeypatch.chdir(tmp_path)
        status, _, err = call("palettize", "src", "--dry-run", *given)
        assert status == 130 and "interrupted; " in err and told in err


def test_generate_streams_prompt_and_text(loaded: Loaded) -> None:
    status, out, err = call("generate", "once upon", "--max-tokens", "8", "--seed", "1", "--ignore-eos")
    expected = loaded.load().generate("once upon", max_tokens=8, seed=1, ignore_eos=True)
    assert (status, out) == (0, f"once upon{expected.text}\n")
    assert "8 tokens" in err and "tokens/s" in err and "seed 1" in err
    assert call(
        "generate", "-q", "--max-tokens", "8", "--seed", "1", "--ignore-eos", stdin="once upon\n"
    ) == (0, out, "")


def test_generate_json(loaded: Loaded) -> None:
    args = ["--max-tokens", "4", "--temperature", "0", "--seed", "7", "--logprobs", "2", "--json"]
    args += ["--threads", "2", "--max-memory", "1.5GiB", "--kv", "int8"]
    status, out, _ = call("generate", "once", "--model", "some/dir", *args)
    found = json.loads(out)
    assert status == 0 and found["model"] == "fake" and found["prompt"] == "once" and found["seed"] == 7
    assert {"text", "tokens", "finish_reason", "stop_reason", "logprobs", "usage", "timings"} <= found.keys()
    assert found["usage"]["total_tokens"] == found["usage"]["prompt_tokens"] + len(found["tokens"])
    assert {"ttft_seconds", "decode_tokens_per_second"} <= found["timings"].keys()
    assert len(found["logprobs"][0]["top"]) == 2
    settings = {
        "threads": 2,
        "max_memory": 3 << 29,
        "precise": False,
        "kv_dtype": "int8",
        "adapter": "recovery",
    }
    assert loaded.calls == [("some/dir", settings)]


def test_generate_chat_uses_the_template(loaded: Loaded) -> None:
    status, out, _ = call("generate", "once", "--chat", "--max-tokens", "4", "--seed", "7", "--json")
    assert status == 0 and json.loads(out)["usage"]["prompt_tokens"] > 4


@pytest.mark.parametrize(
    ("args", "status", "part"),
    [
        (["generate", "x", "--temperature", "nan"], 2, "temperature"),
        (["generate", "x", "--temperature", "hot"], 2, "temperature"),
        (["generate", "x", "--max-tokens", "0"], 2, "max_tokens"),
        (["generate", "x", "--max-memory", "much"], 2, "size"),
        (["generate", "x", "--max-memory", "9" * 22], 2, f"'{'9' * 22}' is too large"),
        (["generate", "x", "--max-memory", "9" * 400], 2, "too large"),
        (["generate", "x", "--max-memory", "9" * 5000 + ".5GiB"], 2, "too large"),
        (["generate", "x", "--max-memory", "x" * 5000], 2, "size"),
        (["palettize", "src", "dst", "--size", "9" * 400], 2, "too large"),
        (["palettize", "src", "dst", "--recover-train", "9" * 400], 2, "too large"),
        (["palettize", "src", "dst", "--recover-train", "9" * 5000 + "M"], 2, "too large"),
        (["generate", "x", "--wrong"], 2, "--wrong"),
        (["generate", "x", "y"], 2, "argument"),
        (["generate", "x " * 500], 1, "context"),
        (["generate", "x", "--logprobs", "3"], 2, "--logprobs needs --json"),
        (["generate", "\udcff\udcfe"], 2, "PROMPT is not UTF-8 text"),
        (["generate", "\udcff\udcfe", "--chat"], 2, "PROMPT is not UTF-8 text"),
        (["generate", "x", "--stop", "y", "--stop", "\udcff"], 2, "--stop is not UTF-8 text"),
        (["generate", "", "--chat"], 2, "PROMPT is empty"),
        (["chat", "-i", "\udcff"], 2, "--instructions is not UTF-8 text"),
        (["perplexity"], 2, "FILE"),
        (["perplexity", "a", "b", "c"], 2, "FILE"),
        (["perplexity", "nowhere.txt"], 1, "nowhere.txt"),
        (["perplexity", "/"], 2, "directory"),
        (["perplexity", "/dev/zero"], 1, "/dev/zero: is not a regular file"),
        (["generate", ""], 2, "PROMPT is empty"),
        (["inspect", "nowhere/at/all"], 1, "nowhere/at/all"),
        (["palettize", "nowhere/at/all", "dst"], 1, "nowhere/at/all"),
        (["palettize", "src"], 2, "DST"),
        (["palettize", "src", "dst", "--bits", "9"], 2, "bits"),
        (["fly"], 2, "fly"),
        (["genrate", "x"], 2, "'generate'"),
    ],
)
def test_failures_are_one_line(loaded: Loaded, args: list[str], status: int, part: str) -> None:
    found, out, err = call(*args)
    assert found == status and part in err and err.count("\n") == 1 and err.startswith("pocketlm: error: "), (
        err
    )
    assert "Traceback" not in err and "{" not in out


@pytest.mark.parametrize(
    ("given", "size"),
    [
        ("1", 1),
        ("0.3GB", 300_000_000),
        ("1.5 gib", 3 << 29),
        ("9007199254740993", (1 << 53) + 1),
        ("9223372036854775807B", sys.maxsize),
    ],
)
def test_sizes_are_taken_as_given(loaded: Loaded, given: str, size: int) -> None:
    assert call("generate", "x", "--max-memory", given)[0] == 0
    assert loaded.calls[-1][1]["max_memory"] == size


def test_errors_in_the_middle_are_one_line(loaded: Loaded) -> None:
    for error, part in (
        (WeightError("tensor 'x'\nis damaged"), "'x' is damaged"),
        (RuntimeError("odd"), "POCKETLM_DEBUG"),
    ):

        def fail(error: Exception = error) -> None:
            raise error

        loaded.before_step = fail
        status, _, err = call("generate", "x", "--json")
        assert status == 1 and part in err and err.count("\n") == 1


def test_interrupt_and_closed_pipe(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    loaded.before_step = interrupt
    assert call("generate", "x")[0] == 130


def test_debug_lets_exceptions_through(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POCKETLM_DEBUG", "1")
    with pytest.raises(ValueError, match="temperature"):
        call("generate", "x", "--temperature", "nan")


def test_perplexity_json(loaded: Loaded, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("once upon a time\n" * 20)
    status, out, _ = call("perplexity", str(path), "--context", "32", "--json")
    found = json.loads(out)
    keys = {"tokens", "bytes", "nll", "perplexity", "bits_per_byte", "windows"}
    assert status == 0 and set(found) == keys | {"perplexity_se", "bits_per_byte_se"}
    assert found["bytes"] == 340 and loaded.calls[-1][0] is None
    assert (
        call("perplexity", "model", str(path), "--context", "32")[0] == 0 and loaded.calls[-1][0] == "model"
    )


def test_perplexity_against_a_source(loaded: Loaded, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("once upon a time\n" * 20)
    args = ["perplexity", "model", str(path), "--against", "source", "--context", "32"]
    status, out, _ = call(*args, "--json")
    found = json.loads(out)
    assert status == 0 and [name for name, _ in loaded.calls] == ["model", "source"]
    # The stand-in is the same model twice.
    assert found["perplexity_ratio"] == 1 and found["top1_agreement"] == 1 and found["kl_p999"] == 0
    assert found["model"] == found["source"] and found["model"]["windows"] > 1
    status, out, err = call(*args)
    assert status == 0 and err == "" and "perplexity ratio  1.00000 ± 0.00000" in out
    assert " windows, " in out and "no standard errors" not in out
    path.write_text("once upon a time\n")
    for some in (args, [*args[:3], *args[5:]]):
        status, out, err = call(*some)
        assert status == 0 and "no standard errors: there is one window only" in out and "±" not in out
        assert "--against" not in some or " in 1 window, " in out


def test_the_bar_of_perplexity_ends_at_the_limit(
    loaded: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "text.txt"
    path.write_text("once upon a time\n" * 200)
    drawn: list[tuple[int, int, str]] = []
    monkeypatch.setattr(Bar, "__exit__", lambda bar, *_: drawn.append((bar.n, bar.total, bar.desc)))
    monkeypatch.setattr("io.StringIO", Terminal)
    for limit in ([], ["--limit", "70"]):
        assert call("perplexity", str(path), "--context", "32", *limit)[0] == 0
    (done, whole, title), (fewer, part, _) = drawn
    assert title.startswith("perplexity") and done == whole == 3400 and fewer == part < 500


def test_chat_without_a_terminal(loaded: Loaded, tmp_path: Path) -> None:
    target = tmp_path / "talk.json"
    talk = f"once upon\n\n/help\n/save {target}\n/save\n/nonsense\n/reset\nthe cat\n/quit\nnever\n"
    status, out, err = call("chat", "-i", "Be brief.", "--max-tokens", "5", "--seed", "1", stdin=talk)
    assert status == 0 and err == ""
    assert "/reset" in out and "Saved 3 turns" in out and "Give a file" in out and "/nonsense is not" in out
    saved = json.loads(target.read_text())
    assert [turn["role"] for turn in saved] == ["system", "user", "assistant"]
    assert saved[2]["content"] in out


def test_chat_goes_on_after_an_error(loaded: Loaded) -> None:
    talk = f"{'the cat ' * 300}\nonce\n/save /nowhere/at/all.json\n"
    status, out, err = call("chat", "--max-tokens", "5", "--seed", "1", stdin=talk)
    assert status == 1 and "error: " not in out and err.count("error: ") == 2 == err.count("\n")
    assert "context" in err and "error: /nowhere/at/all.json: no such file or directory" in err
    # Nothing was said yet that could be forgotten.
    assert "/reset" not in err
    assert out == call("chat", "--max-tokens", "5", "--seed", "1", stdin="once\n")[1]


def test_chat_says_how_to_go_on_in_a_full_context(loaded: Loaded) -> None:
    long = "the cat " * 12
    status, out, err = call("chat", "--max-tokens", "5", "--seed", "1", stdin=f"{long}\n" * 40)
    assert status == 1 and out and "; /reset forgets the conversation so far" in err
    status, _, err = call("chat", "--max-tokens", "5", "--seed", "1", stdin=f"{long}\n/reset\n" * 40)
    assert status == 0 and err == ""


@pytest.mark.parametrize("args", [("chat",), ("chat", "--json"), ("generate",), ("generate", "--chat")])
def test_input_that_is_no_text_is_one_line(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch, args: tuple[str, ...]
) -> None:
    err = io.StringIO()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff\xfe\n"), "utf-8"))
    monkeypatch.setattr(sys, "stderr", err)
    assert run([*args, "--max-tokens", "5"]) == 2
    assert err.getvalue() == "pocketlm: error: standard input is not UTF-8 text\n"


def test_models_without_chat_say_so(loaded: Loaded) -> None:
    args = ("generate", "once", "--chat", "--max-tokens", "4", "--seed", "7")
    assert "knows no chat" not in call(*args)[2]
    loaded.template = None
    status, out, err = call(*args)
    assert status == 0 and "knows no chat" in err and "knows no chat" not in out
    assert call(*args, "-q")[2] == ""


def test_chat_takes_a_draft_model(loaded: Loaded) -> None:
    assert call("chat", "my-model", "--draft", "small", stdin="")[0] == 0
    assert loaded.calls[-1][1]["draft"] == "small"


def test_chat_json_is_a_line_an_answer(loaded: Loaded) -> None:
    status, out, _ = call("chat", "--max-tokens", "5", "--seed", "1", "--json", stdin="once\nthe cat\n")
    answers = [json.loads(line) for line in out.splitlines()]
    assert status == 0 and [a["prompt"] for a in answers] == ["once", "the cat"]
    assert answers[1]["usage"]["reused_tokens"] > 0
    kept = answers[1]
    talk = "once\n/reset\n/nonsense\nthe cat\n/quit\nnever\n"
    status, out, err = call("chat", "--max-tokens", "5", "--seed", "1", "--json", stdin=talk)
    answers = [json.loads(line) for line in out.splitlines()]
    assert status == 0 and [a["prompt"] for a in answers] == ["once", "the cat"]
    assert answers[1]["usage"]["prompt_tokens"] < kept["usage"]["prompt_tokens"]  # forgotten
    assert "forgotten" in err and "/nonsense is not" in err


def test_ctrl_c_ends_the_answer_not_the_chat(loaded: Loaded) -> None:
    count = 0

    def interrupt() -> None:
        nonlocal count
        count += 1
        if count == 3:
            signal.raise_signal(signal.SIGINT)

    loaded.before_step = interrupt
    # Whoever starts the tests in the background has them ignore the signal.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    status, out, _ = call("chat", "--max-tokens", "100", "--json", stdin="")
    assert status == 0
    status, out, _ = call("chat", "--max-tokens", "20", "--seed", "1", stdin="once\n/save\nthe cat\n")
    assert status == 0 and "Give a file" in out and count > 4
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_help_of_chat_fits_a_terminal(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    out = call("chat", stdin="/help\n")[1]
    assert max(map(len, out.splitlines())) <= 60 and "\n               no command takes it up again\n" in out
