"""Tokenizers and their settings: what is honoured, and what is refused."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import processors

from pocketlm.detokenize import REPLACEMENT
from pocketlm.errors import ContextLengthError, ParameterError, TemplateError, TokenizerError
from pocketlm.loading.tokenizer import check_tokenizer, read_tokenizer
from pocketlm.tokenizer import Tokenizer
from tokenizer_files import CHAT, byte_level, metaspace, save

CONFIG = {"bos_token": "<|bos|>", "eos_token": {"content": "<|end|>"}}


def test_special_tokens_and_round_trip() -> None:
    tokenizer = Tokenizer(byte_level(), config=CONFIG, eos=[7])
    assert tokenizer.bos == 0 and tokenizer.eos == {1, 7} and tokenizer.adds_bos
    text = "naïve 😀\n"
    ids = tokenizer.encode(text)
    assert ids[0] == 0 and tokenizer.decode(ids) == text and tokenizer.encode(text, bos=False) == ids[1:]
    assert tokenizer.decode([*ids, 1], special=True) == f"<|bos|>{text}<|end|>"


@pytest.mark.parametrize("add_bos", [True, False, None])
@pytest.mark.parametrize("processor", [True, False])
def test_add_bos_token_overrides_the_processor(add_bos: bool | None, processor: bool) -> None:
    tokenizer = Tokenizer(byte_level(bos=processor), config={**CONFIG, "add_bos_token": add_bos})
    expected = processor if add_bos is None else add_bos
    assert (tokenizer.encode("once")[0] == 0) is expected and tokenizer.adds_bos is expected


def test_an_end_that_the_processor_adds_is_left_out() -> None:
    inner = byte_level()
    inner.post_processor = processors.TemplateProcessing(
        single="<|bos|> $A <|end|>", special_tokens=[("<|bos|>", 0), ("<|end|>", 1)]
    )
    tokenizer = Tokenizer(inner, config=CONFIG)
    assert tokenizer.encode("once")[0] == 0 and 1 not in tokenizer.encode("once")
    assert tokenizer.encode("once<|end|>")[-1] == 1  # unless the text has it


def test_truncation_and_padding_of_the_file_are_off() -> None:
    inner = byte_level()
    inner.enable_truncation(5)
    inner.enable_padding(length=50)
    assert 20 < len(Tokenizer(inner, config=CONFIG).encode("the cat " * 20)) != 50


def test_sizes_that_do_not_match_are_refused() -> None:
    inner = byte_level()
    size = inner.get_vocab_size()
    Tokenizer(inner, vocab_size=size)
    with pytest.raises(TokenizerError, match=f"{size - 1}.*{size - 1} rows"):
        Tokenizer(inner, vocab_size=size - 1)
    with pytest.raises(TokenizerError, match="eos_token_id"):
        Tokenizer(inner, eos=[size])
    with pytest.raises(TokenizerError, match="bos_token"):
        Tokenizer(inner, config={"bos_token": "<nowhere>"})
    with pytest.raises(TokenizerError, match="eos_token"):
        Tokenizer(inner, config={"eos_token": 5})
    with pytest.raises(TokenizerError, match="surrogates"):
        Tokenizer(inner, config={"bos_token": "\ud800"})


def test_bad_text_and_ids_are_refused() -> None:
    tokenizer = Tokenizer(byte_level())
    for text in (None, b"once", 5, "\ud800"):
        with pytest.raises(ParameterError):
            tokenizer.encode(text)  # type: ignore[arg-type]
    for ids in ([-1], ["a"], 5, [1 << 40]):
        with pytest.raises(ParameterError):
            tokenizer.decode(ids)  # type: ignore[arg-type]
    with pytest.raises(ContextLengthError):
        tokenizer.encode("a" * 1_000_000, limit=100)
    assert tokenizer.decode([100_000]) == ""


def test_only_integers_are_ids_and_only_text_is_text(tmp_path: Path) -> None:
    for tokenizer in (Tokenizer(byte_level()), Tokenizer(read_tokenizer(save(tmp_path) / "tokenizer.json"))):
        ids = tokenizer.encode("once upon")
        assert tokenizer.decode(np.array(ids, np.uint16)) == tokenizer.decode(tuple(ids)) == "once upon"
        assert tokenizer.decode([]) == tokenizer.decode(range(0)) == ""
        bad_ids: list[Any] = [
            [300.9],
            ["300"],
            "12",
            [True],
            b"abc",
            bytearray(b"abc"),
            5,
            None,
            [ids],
            np.zeros((2, 2), int),
            [np.bool_(True)],
            [5, 5.0],
            [10**5000],
            [-1],
            [1 << 32],
        ]
        for bad in bad_ids:
            with pytest.raises(ParameterError, match=r"^ids: "):
                tokenizer.decode(bad)
        for text in (5, None, b"once", "\ud800"):
            for call in (tokenizer.token_id, tokenizer.offsets, tokenizer.encode):
                with pytest.raises(ParameterError, match=r"^text: "):
                    call(text)  # type: ignore[operator]
        assert tokenizer.token_text(ids[0]) == tokenizer.token_text(np.int64(ids[0])) != ""  # type: ignore[arg-type]
        for beyond in (-1, tokenizer.size, 1 << 31, 1 << 32, 1 << 40, -(1 << 70)):
            assert tokenizer.token_text(beyond) == ""
        for odd in (True, 5.0, "5", None):
            with pytest.raises(ParameterError, match=r"^token: must be an integer"):
                tokenizer.token_text(odd)  # type: ignore[arg-type]


def test_chat_ids_have_no_second_bos() -> None:
    tokenizer = Tokenizer(byte_level(), config=CONFIG, template=CHAT)
    ids = tokenizer.encode_chat([{"role": "user", "content": "once"}])
    assert (
        ids.count(0) == 1 and tokenizer.decode(ids, special=True) == "<|bos|><|user|>once<|end|><|assistant|>"
    )
    with pytest.raises(ContextLengthError):
        tokenizer.encode_chat([{"role": "user", "content": "a " * 100_000}], limit=100)
    with pytest.raises(TemplateError, match="no chat template"):
        Tokenizer(byte_level()).encode_chat([])


def test_byte_fallback_is_known_by_what_it_decodes_to() -> None:
    assert len(Tokenizer(metaspace())._bytes) == 256 and not Tokenizer(byte_level())._bytes


def test_damaged_files_raise_and_do_not_hang(tmp_path: Path) -> None:
    path = save(tmp_path) / "tokenizer.json"
    good, rng = path.read_bytes(), random.Random(0)
    values = json.loads(good)
    cases = [
        b"",
        b"{}",
        b"[" * 100_000,
        b"\xff\xfe",
        good[: len(good) // 2],
        json.dumps({**values, "model": {}}).encode(),
    ]
    cases.append(json.dumps({**values, "model": {**values["model"], "vocab": {}, "merges": []}}).encode())
    for _ in range(150):
        damaged = bytearray(good)
        for _ in range(rng.randrange(1, 4)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        cases.append(bytes(damaged))
    refused = 0
    for case in cases:
        path.write_bytes(case)
        try:
            found = read_tokenizer(path)
            check_tokenizer(path, found.size, 400)
            tokenizer = Tokenizer(found, config=CONFIG, vocab_size=400)
            ids = tokenizer.encode("once upon a time 😀")
            tokenizer.decode(ids)
        except TokenizerError as error:
            refused += 1
            assert "\n" not in str(error)[:20]
    assert refused > 20


@pytest.mark.parametrize("part", ["normalizer", "decoder"])
@pytest.mark.parametrize(
    "replacements",
    [
        [({"String": "o"}, "o" * 10)] * 8,
        [({"String": "o"}, "x" * 5000)],
        [({"Regex": "x*"}, "o")] * 13,
        [({"Regex": "[a-z]"}, "$0" * 60)] * 3,
    ],
)
def test_a_text_cannot_be_made_to_explode(tmp_path: Path, part: str, replacements: list[Any]) -> None:
    path = save(tmp_path) / "tokenizer.json"
    values = json.loads(path.read_text())
    steps = [{"type": "Replace", "pattern": p, "content": c} for p, c in replacements]
    values[part] = {"type": "Sequence", f"{part}s": [{"type": "Sequence", f"{part}s": steps}]}
    path.write_text(json.dumps(values))
    with pytest.raises(TokenizerError, match=r"tokenizer\.json.*times longer"):
        read_tokenizer(path)
    metaspace().save(str(path))  # replaces in both parts, but one character by one
    read_tokenizer(path)


def test_files_that_are_too_large_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    with path.open("wb") as file:
        file.truncate(8 << 30)  # takes no space on the disk
    with pytest.raises(TokenizerError, match=r"tokenizer\.json: larger"):
        read_tokenizer(path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(TokenizerError, match="not a regular file"):
        read_tokenizer(path)


@pytest.mark.parametrize("inner", [byte_level(), metaspace()], ids=["byte_level", "metaspace"])
@given(text=st.text() | st.text("once upon a time.é本 "))
def test_texts_of_single_tokens_join_to_the_text(inner: tokenizers.Tokenizer, text: str) -> None:
    tokenizer = Tokenizer(inner)
    ids = [i for i in tokenizer.encode(text, bos=False) if tokenizer.token_text(i) != "<unk>"]
    before = tokenizer.encode("once", bos=False)
    expected = tokenizer.decode([*before, *ids], special=True)
    found = "".join(tokenizer.decode_token(i) for i in ids)
    # A character whose bytes are several tokens is none of their texts.
    assert REPLACEMENT in found or f"once{found}" == expected


def test_the_text_of_a_token_is_not_how_the_vocabulary_writes_it() -> None:
    bytes_, words = Tokenizer(byte_level(), config=CONFIG), Tokenizer(metaspace())

    def text(tokenizer: Tokenizer, token: str) -> str:
        found = tokenizer.token_id(token)
        assert found is not None
        return tokenizer.decode_token(found)

    assert [text(bytes_, token) for token in ("Ġ", "a", "ð", "<|end|>")] == [" ", "a", REPLACEMENT, "<|end|>"]
    found = [text(words, token) for token in ("▁upon", "▁", "s", "<0x20>", "<0x41>", "<0xF0>", "</s>")]
    assert found == [" upon", " ", "s", " ", "A", REPLACEMENT, "</s>"]
    assert words.decode_token(words.size) == ""
    with pytest.raises(ParameterError):
        words.decode_token(-1)
