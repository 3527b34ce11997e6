"""Tests of the data preparation that need no corpus."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from training.overlap import Document, drop_duplicates, drop_held_out
from training.text import clean_document, clean_paragraph, read_file
from training.tokenizer import SPECIAL_TOKENS, encode, train_tokenizer


def _prose(seed: int, words: int) -> str:
    rng = random.Random(seed)
    return " ".join("".join(rng.choices("abcdefgh", k=4)) for _ in range(words))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer([_prose(seed, 400) for seed in range(4)], 400)


def test_vocabulary_is_exact_and_specials_come_first(tokenizer: Tokenizer) -> None:
    assert tokenizer.get_vocab_size() == 400
    assert [tokenizer.token_to_id(token) for token in SPECIAL_TOKENS] == [0, 1, 2, 3, 4]
    assert tokenizer.encode("ab").ids[0] == 0


def test_random_text_round_trips(tokenizer: Tokenizer) -> None:
    rng = random.Random(0)
    for _ in range(300):
        points = [
            rng.choice((rng.randrange(32), rng.randrange(0xD800), rng.randrange(0xE000, 0x110000)))
            for _ in range(20)
        ]
        text = "".join(map(chr, points))
        assert tokenizer.decode(encode(tokenizer, text), skip_special_tokens=False) == text


def test_too_small_text_is_an_error() -> None:
    with pytest.raises(ValueError, match="only"):
        train_tokenizer(["abc"], 5000)


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("“Oh,” she said – ‘no’.", "\"Oh,\" she said--'no'."),
        ("good–temperedly, the boyʼs 1914–18", "good-temperedly, the boy's 1914-18"),
        ("__Rita:__ _(laughs)_ Yes.", "Rita: (laughs) Yes."),
        ("|MRS. Lynde", "MRS. Lynde"),
        ("* * * * *", ""),
        ("A Book. 12mo, cloth, price $1.00.", ""),
        ("a verse\n  and another", "a verse\nand another"),
        ("it--and café", "it--and café"),
    ],
)
def test_clean_paragraph(raw: str, clean: str) -> None:
    assert clean_paragraph(raw) == clean


def test_what_follows_the_end_is_dropped() -> None:
    body = "\n\n".join(["It was a day like any other."] * 40)
    assert clean_document(f"{body}\n\nTHE END\n\nOther books you may like")[-1] == "THE END"


def test_held_out_passages_are_removed_and_split_the_document() -> None:
    secret = _prose(1, 80)
    document = Document("s", [_prose(2, 120), secret.upper(), _prose(3, 120)])
    pieces = drop_held_out([document], [secret])
    assert [piece.paragraphs for piece in pieces] == [[document.paragraphs[0]], [document.paragraphs[2]]]


def test_only_the_first_copy_of_a_duplicate_is_kept() -> None:
    tale, other = _prose(4, 200), _prose(5, 200)
    documents = [Document("a", [tale]), Document("b", [tale, other])]
    assert drop_duplicates(documents) == [Document("a", [tale]), Document("b", [other])]


def test_short_stories_pass_through() -> None:
    stories = [Document("a", ["Fat cat.", "The end of it."]), Document("a", ["Thin cat."])]
    assert drop_duplicates(drop_held_out(stories, ["Fat cat."])) == stories


def test_missing_file_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"stories-train\.txt\.xz"):
        read_file(tmp_path, "stories-train.txt.xz")
