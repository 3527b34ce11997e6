"""Byte-pair tokenizers put together from their parts are those that the library reads."""

from __future__ import annotations

import copy
import json
import os
import pickle
import random
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors

from pocketlm._core import BytePairs, byte_level_text
from pocketlm.errors import TokenizerError
from pocketlm.loading.bpe import BytePairTokenizer, of_tables
from pocketlm.loading.tokenizer import ReadTokenizer, read_tokenizer
from pocketlm.tokenizer import Tokenizer
from tokenizer_files import byte_level, metaspace


def read_bpe(data: bytes) -> BytePairTokenizer | None:
    tables = BytePairs.reading(data).result()
    return None if tables is None else of_tables(data, tables)


def by_library(data: bytes) -> tokenizers.Tokenizer:
    found = tokenizers.Tokenizer.from_buffer(data)
    found.no_truncation()
    found.no_padding()
    return found


def changed(change: Callable[[dict[str, Any]], object], inner: tokenizers.Tokenizer | None = None) -> bytes:
    values = json.loads((inner or byte_level()).to_str())
    change(values)
    return json.dumps(values).encode()


def more_tokens() -> tokenizers.Tokenizer:
    inner = byte_level()
    inner.add_tokens([AddedToken("tool", lstrip=True, single_word=True), AddedToken("cat", normalized=True)])
    inner.add_special_tokens([AddedToken("<|tool|>", rstrip=True)])
    inner.enable_truncation(5)
    inner.enable_padding(length=50)
    return inner


def closed() -> tokenizers.Tokenizer:
    inner = metaspace()
    inner.decoder = None
    inner.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 1))
    return inner


def words() -> tokenizers.Tokenizer:
    vocab = {"c": 0, "##a": 1, "##t</w>": 2, "##at</w>": 3, "?": 4}
    model = models.BPE(
        vocab, [("##a", "##t</w>")], continuing_subword_prefix="##", end_of_word_suffix="</w>", unk_token="?"
    )
    return tokenizers.Tokenizer(model)


FORMS = {
    "bytes": lambda: byte_level().to_str().encode(),
    "fallback": lambda: metaspace().to_str().encode(),
    "added": lambda: more_tokens().to_str().encode(),
    "prefix and suffix": lambda: words().to_str().encode(),
    "merges as text": lambda: changed(
        lambda v: v["model"].update(merges=[" ".join(pair) for pair in v["model"]["merges"]])
    ),
    "merges first": lambda: changed(
        lambda v: v["model"].update(merges=v["model"].pop("merges"), vocab=v["model"].pop("vocab"))
    ),
    "prefix of texts": lambda: changed(
        lambda v: v["pre_tokenizer"].update(add_prefix_space=True), byte_level(bos=False)
    ),
    "ends of texts": lambda: closed().to_str().encode(),
    "ignore merges": lambda: changed(lambda v: v["model"].update(ignore_merges=True, dropout=0.0)),
    "options left out": lambda: changed(
        lambda v: [v["model"].pop(name) for name in ("dropout", "unk_token", "fuse_unk", "ignore_merges")]
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_it_is_the_tokenizer_that_the_library_reads(form: str) -> None:
    data = FORMS[form]()
    expected = by_library(data)
    found = read_bpe(data)
    assert found is not None
    assert found.whole.to_str() == expected.to_str()
    text = " once upon a tool time, the cat<|tool|> sat 😀\n"
    assert found.encode(text).ids == expected.encode(text).ids


@pytest.mark.parametrize("form", FORMS)
def test_until_a_text_is_encoded_it_answers_as_the_library_does(
    form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = FORMS[form]()
    expected, found, rng = by_library(data), read_bpe(data), random.Random(2)
    assert found is not None
    monkeypatch.setattr(BytePairTokenizer, "whole", None)
    vocabulary = expected.get_vocab(with_added_tokens=True)
    assert found.get_vocab() == vocabulary
    assert (found.size, found.longest) == (max(vocabulary.values()) + 1, max(map(len, vocabulary)))
    tokens = expected.get_added_tokens_decoder()
    assert found.special == {number for number, token in tokens.items() if token.special}
    assert [found.encode("", add_special_tokens=some).ids for some in (True, False)] == [
        expected.encode("", add_special_tokens=some).ids for some in (True, False)
    ]
    for text, number in vocabulary.items():
        assert found.token_to_id(text) == number and found.id_to_token(number) == text
    assert found.token_to_id("nowhere") is None and found.id_to_token(found.size + 3) is None
    for count in [0, *rng.choices(range(1, 40), k=300)]:
        ids = [rng.randrange(found.size + 2) for _ in range(count)]
        for skip in (True, False):
            text = expected.decode(ids, skip_special_tokens=skip)
            assert found.decode(ids, skip_special_tokens=skip) == text


@given(
    st.lists(
        st.text(
            st.one_of(
                st.characters(codec="utf-8"), st.sampled_from(sorted(pre_tokenizers.ByteLevel.alphabet()))
            )
        ),
        max_size=8,
    )
)
def test_byte_level_tokens_are_the_text_that_the_library_makes_of_them(texts: list[str]) -> None:
    assert byte_level_text(texts) == decoders.ByteLevel().decode(texts)


def test_every_pair_of_bytes_is_decoded_as_the_library_does() -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    decoder = decoders.ByteLevel()
    assert len(alphabet) == 256
    for first in alphabet:
        for second in alphabet:
            assert byte_level_text([first, second]) == decoder.decode([first, second])


def test_byte_level_tokens_are_decoded_without_the_library_and_others_are_not(tmp_path: Path) -> None:
    lines = """
import sys
from pathlib import Path
from pocketlm.loading.tokenizer import read_tokenizer
found = read_tokenizer(Path(sys.argv[1])).inner
print(repr(found.decode([40, 41, 42])), "tokenizers" in sys.modules)
"""
    for inner, imports in ((byte_level(), False), (metaspace(), True)):
        path = tmp_path / "tokenizer.json"
        path.write_text(inner.to_str())
        command = [sys.executable, "-c", lines, str(path)]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert said == f"{inner.decode([40, 41, 42])!r} {imports}\n"


@pytest.mark.parametrize(
    "change",
    [
        {"pre_tokenizer": {"type": "Unknown"}},
        {"post_processor": {"type": "TemplateProcessing"}},
        {
            "pre_tokenizer": {
                "type": "Split",
                "pattern": {"Regex": "("},
                "behavior": "Isolated",
                "invert": False,
            }
        },
    ],
)
def test_what_encodes_is_checked_with_the_first_text(tmp_path: Path, change: dict[str, Any]) -> None:
    data = changed(lambda v: v.update(change))
    (tmp_path / "tokenizer.json").write_bytes(data)
    read = read_tokenizer(tmp_path / "tokenizer.json")
    tokenizer = Tokenizer(read, config={"bos_token": "<|bos|>"}, source="tokenizer.json")
    assert tokenizer.decode([40]) == Tokenizer(byte_level()).decode([40])
    with pytest.raises(Exception, match=r"\w") as expected:
        by_library(data)
    for encode in (lambda: tokenizer.encode("a text"), tokenizer.prewarm):
        with pytest.raises(TokenizerError, match=re.escape(f"not supported: {expected.value}"[:100])):
            encode()
    with pytest.raises(TokenizerError, match="not supported: "):
        tokenizer.encode("")


def test_a_refused_tokenizer_is_refused_again_without_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    found = read_bpe(changed(lambda v: v.update(pre_tokenizer={"type": "Unknown"})))
    assert found is not None
    with pytest.raises(Exception, match="PreTokenizer") as first:
        found.encode("a text")
    monkeypatch.setattr(BytePairTokenizer, "_assembled", None)
    with pytest.raises(Exception, match="PreTokenizer") as second:
        found.encode("a text")
    assert second.value is first.value


class Alarm(Exception):
    """What a signal's handler raises."""


def test_an_exception_from_elsewhere_is_no_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(self: BytePairTokenizer) -> None:
        raise Alarm("time is over")

    read = read_bpe(FORMS["bytes"]())
    assert read is not None
    tokenizer = Tokenizer(ReadTokenizer(read, read.size, read.longest), config={"bos_token": "<|bos|>"})
    with monkeypatch.context() as patched:
        patched.setattr(BytePairTokenizer, "_assembled", interrupted)
        with pytest.raises(Alarm, match="time is over"):
            tokenizer.encode("once upon a time")
    assert tokenizer.encode("once upon a time")


def test_a_library_that_cannot_be_imported_is_not_called_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    read = read_bpe(FORMS["bytes"]())
    assert read is not None
    tokenizer = Tokenizer(ReadTokenizer(read, read.size, read.longest), config={"bos_token": "<|bos|>"})
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "tokenizers", None)
        with pytest.raises(TokenizerError, match="cannot be imported"):
            tokenizer.encode("once upon a time")
    assert tokenizer.encode("once upon a time")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_while_another_thread_encodes_its_first_text_leaves_a_usable_child(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(FORMS["bytes"]())
    lines = """
import os, signal, sys, threading, time
from pathlib import Path
from pocketlm.loading.tokenizer import read_tokenizer
found = read_tokenizer(Path(sys.argv[1])).inner
assert "tokenizers" not in sys.modules
thread = threading.Thread(target=found.encode, args=("once upon a time",))
thread.start()
time.sleep(float(sys.argv[2]))
child = os.fork()
if child == 0:
    signal.alarm(20)  # a child that hangs ends by this
    os._exit(0 if found.encode("once upon a time").ids else 1)
thread.join()
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    for delay in ("0", "0.001", "0.002", "0.004"):
        command = [sys.executable, "-W", "ignore", "-c", lines, str(tmp_path / "tokenizer.json"), delay]
        subprocess.run(command, check=True, timeout=60)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs timers")
def test_a_signal_handler_that_interrupts_the_first_text_fails_alone(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(FORMS["bytes"]())
    lines = """
import signal, sys
from pathlib import Path
from pocketlm.errors import TokenizerError
from pocketlm.loading.tokenizer import read_tokenizer
from pocketlm.tokenizer import Tokenizer
tokenizer = Tokenizer(read_tokenizer(Path(sys.argv[1])), config={"bos_token": "<|bos|>"})
def handler(*_):
    try:
        assert tokenizer.encode("once upon")
    except TokenizerError as error:
        assert "cannot be imported" in str(error), error
signal.signal(signal.SIGALRM, handler)
signal.setitimer(signal.ITIMER_REAL, float(sys.argv[2]))
assert tokenizer.encode("once upon a time") and tokenizer.encode("once upon a time")
signal.setitimer(signal.ITIMER_REAL, 0)
"""
    for delay in ("0.0005", "0.001", "0.002", "0.004", "0.006"):
        subprocess.run([sys.executable, "-c", lines, str(tmp_path / "tokenizer.json"), delay], check=True)


def test_what_the_library_would_build_otherwise_it_reads_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    data = FORMS["added"]()
    found = read_bpe(data)
    assert found is not None
    monkeypatch.setattr(BytePairTokenizer, "_assembled", lambda self: None)
    text = " once upon a tool time, the cat<|tool|> sat 😀\n" * 5
    assert found.encode(text).ids == by_library(data).encode(text).ids


def test_copies_encode_and_decode_alike() -> None:
    found = Tokenizer(ReadTokenizer(read := read_bpe(FORMS["fallback"]()), read.size, read.longest))  # type: ignore[arg-type,union-attr]
    for copied in (copy.deepcopy(found), pickle.loads(pickle.dumps(found))):
        ids = copied.encode("once upon a cat 😀")
        assert ids == found.encode("once upon a cat 😀") and copied.decode(ids) == found.decode(ids)


def test_threads_that_need_it_first_together_have_one_tokenizer_each_or_the_same() -> None:
    found = read_bpe(FORMS["bytes"]())
    assert found is not None
    with ThreadPoolExecutor(8) as pool:
        texts = list(pool.map(lambda _: found.encode("once upon a time").ids, range(32)))
    assert all(ids == texts[0] for ids in texts) and texts[0]


@pytest.mark.parametrize(
    "data",
    [
        tokenizers.Tokenizer(models.WordLevel({"a": 0}, unk_token="a")).to_str().encode(),
        changed(lambda v: v["added_tokens"][0].update(id=250)),  # another number than the library gives
        changed(lambda v: v["model"]["vocab"].update({"far": 700}), more_tokens()),  # added ones go on where?
        changed(lambda v: v["model"].update(cache_size=3)),
        changed(lambda v: v.update(version="7.0")),
        changed(lambda v: v.update(more=1)),
        changed(lambda v: v["decoder"].pop("trim_offsets")),
        changed(lambda v: v["added_tokens"][0].update(normalized=True), metaspace()),
        changed(lambda v: None).replace(b'"special":', b'"special": false, "special":'),
        changed(lambda v: v["model"]["merges"].append(" ".join(v["model"]["merges"][0]))),
        changed(lambda v: v["model"]["merges"].append(["a", "b", "c"])),
        changed(lambda v: v["model"]["merges"].append(["absent", "too"])),
        changed(lambda v: v["model"]["vocab"].update({"x y": -1})),
        changed(lambda v: v["model"]["vocab"].update({"x y": 0})),  # a number twice
        changed(lambda v: v.pop("added_tokens")),
        changed(lambda v: v.update(decoder={"type": "Unknown"})),
        changed(lambda v: v["added_tokens"].append({"content": "\ud800", "id": 305})),
        changed(lambda v: None).replace(b'"model":', b'"model": {}, "model":'),  # a key twice
        changed(lambda v: v["model"]["merges"].append("a b c")),
        changed(lambda v: v["model"]["merges"].append(7)),
        changed(lambda v: v["model"].update(vocab=[])),
        changed(lambda v: None) + b"x",
        b"[" * 100_000,
        b"\xff",
        b"3",
    ],
)
def test_what_is_not_of_the_usual_form_is_left_to_the_library(data: bytes) -> None:
    assert read_bpe(data) is None


def test_where_bytes_are_damaged_it_reads_what_the_library_reads_or_nothing() -> None:
    rng, read = random.Random(1), 0
    good = [FORMS[form]() for form in ("fallback", "added", "prefix and suffix")]
    for _ in range(300):
        damaged = bytearray(rng.choice(good))
        for _ in range(rng.randrange(1, 3)):
            damaged[rng.randrange(len(damaged))] = rng.choice(b'0123456789"{}[]:, abtruefalsn\\')
        if (found := read_bpe(bytes(damaged))) is None:
            continue
        try:
            expected = by_library(bytes(damaged)).to_str()
        except Exception as problem:  # what encodes is checked with the first text
            assert found.waits
            with pytest.raises(type(problem), match=re.escape(str(problem))):
                _ = found.whole
        else:
            read += 1
            assert found.whole.to_str() == expected
    assert read > 20
