"""Text from tokens: stop strings and characters across the borders of tokens."""

from __future__ import annotations

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from pocketlm.detokenize import REPLACEMENT, Detokenizer
from pocketlm.generate.stops import StopStrings
from tokenizer_files import byte_level, metaspace

BYTES, WORDS = byte_level(), metaspace()
VOCABULARY = BYTES.get_vocab_size()


def decoder(tokenizer: tokenizers.Tokenizer, **options: object) -> Detokenizer:
    if tokenizer is WORDS:
        options["byte_tokens"] = {WORDS.token_to_id(f"<0x{b:02X}>"): b for b in range(256)}
    return Detokenizer(lambda ids: tokenizer.decode(ids, skip_special_tokens=False), **options)  # type: ignore[arg-type]


def naive(text: str, stops: list[str]) -> tuple[str, str | None]:
    for end in range(len(text) + 1):
        for start in range(end):
            if text[start:end] in stops:
                return text[:start], text[start:end]
    return text, None


@given(
    st.lists(st.text("ab", max_size=4), max_size=12),
    st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
)
def test_stop_strings_equal_a_search_of_the_whole_text(pieces: list[str], stops: list[str]) -> None:
    stopper, out = StopStrings(stops), ""
    for piece in pieces:
        out += stopper.push(piece)
    out += stopper.flush()
    assert (out, stopper.found) == naive("".join(pieces), stops)


@given(
    st.lists(st.text("ab", max_size=4), max_size=12),
    st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
)
def test_text_is_held_back_no_longer_than_needed(pieces: list[str], stops: list[str]) -> None:
    stopper, out, seen = StopStrings(stops), "", ""
    for piece in pieces:
        out += stopper.push(piece)
        seen += piece
        if stopper.found is None:
            held = seen[len(out) :]
            assert out + held == seen
            assert not held or any(stop.startswith(held) and len(stop) > len(held) for stop in stops)


@given(st.text())
@pytest.mark.parametrize("tokenizer", [BYTES, WORDS], ids=["byte_level", "metaspace"])
def test_streamed_text_is_the_whole_text(tokenizer: tokenizers.Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    detokenizer = decoder(tokenizer)
    pieces = [detokenizer.push(i) for i in ids]
    if REPLACEMENT not in text:
        assert not any(REPLACEMENT in piece for piece in pieces)
    assert "".join(pieces) + detokenizer.flush() == tokenizer.decode(ids, skip_special_tokens=False)


@given(st.lists(st.integers(0, VOCABULARY - 1), max_size=40))
def test_any_bytes_stream_as_they_decode(ids: list[int]) -> None:
    detokenizer = decoder(BYTES)
    out = "".join(detokenizer.push(i) for i in ids) + detokenizer.flush()
    assert out == BYTES.decode(ids, skip_special_tokens=False)


@given(st.lists(st.integers(0, WORDS.get_vocab_size() - 1), max_size=40))
def test_any_tokens_of_words_and_bytes_stream(ids: list[int]) -> None:
    detokenizer = decoder(WORDS)
    out = "".join(detokenizer.push(i) for i in ids) + detokenizer.flush()
    # The library shows a run of bytes with one invalid in it as invalid throughout; a stream cannot take
    # characters back.
    expected = WORDS.decode(ids, skip_special_tokens=False)
    assert REPLACEMENT in expected or out == expected


@given(st.lists(st.lists(st.integers(0, VOCABULARY - 1), max_size=12), max_size=8), st.booleans())
def test_several_tokens_at_once_give_the_same_text(groups: list[list[int]], words: bool) -> None:
    tokenizer = WORDS if words else BYTES
    groups = [[token % tokenizer.get_vocab_size() for token in group] for group in groups]
    skip = frozenset({3, 70})
    singly, together = (decoder(tokenizer, skip=skip) for _ in range(2))
    expected = found = ""
    for group in groups:
        expected += "".join(singly.push(token) for token in group)
        found += together.push_all(group)
        assert found == expected
    assert found + together.flush() == expected + singly.flush()


def test_leading_space_is_kept_after_a_prompt() -> None:
    prompt, word = WORDS.encode("once upon").ids, WORDS.token_to_id("▁time")
    assert decoder(WORDS, context=prompt).push(word) == " time"
    assert decoder(WORDS).push(word) == "time"


def test_a_space_written_as_a_byte_is_lost_at_the_beginning_as_any_other() -> None:
    space, a = WORDS.token_to_id("<0x20>"), WORDS.token_to_id("▁a")
    for ids, text in (([space], ""), ([space, space], " "), ([space, a], " a"), ([a, space, a], "a  a")):
        detokenizer = decoder(WORDS)
        assert "".join(detokenizer.push(i) for i in ids) + detokenizer.flush() == text
        assert WORDS.decode(ids, skip_special_tokens=False) == text


def test_skipped_tokens_do_not_make_the_next_word_the_first() -> None:
    a, special = WORDS.token_to_id("▁a"), WORDS.token_to_id("</s>")
    detokenizer = decoder(WORDS, skip=frozenset([special]))
    assert [detokenizer.push(i) for i in (a, special, special, a)] == ["a", "", "", " a"]


def test_endless_invalid_bytes_stay_bounded() -> None:
    start = BYTES.token_to_id("ð")  # the byte F0, which begins a character
    detokenizer = decoder(BYTES)
    out = "".join(detokenizer.push(start) for _ in range(3000)) + detokenizer.flush()
    assert out == REPLACEMENT * 3000
    assert len(detokenizer._ids) <= 257
