"""Read the training corpora as cleaned, deduplicated documents.

The evaluation text (``stories-valid``) is always used byte for byte as it is on disk. The training text is
brought to the same conventions: one line per paragraph, a blank line between paragraphs, straight quotes,
``--`` for a dash, no mark-up, no publishers' catalogues or transcribers' notes.
"""

from __future__ import annotations

import json
import lzma
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from .overlap import Document, drop_duplicates, drop_held_out

BOOK_BREAK = "\f"
STORY_BREAK = "<|endoftext|>"
VALID_FILE = "stories-valid.txt.xz"
HELD_OUT_TALES = "fairytaleqa-valid.jsonl.xz"


@dataclass(frozen=True)
class Source:
    """One training file: where it comes from, how it is split, and how often it is repeated."""

    name: str
    licence: str
    origin: str
    separator: str
    repeat: int = 1

    @property
    def filename(self) -> str:
        """Name of the file in the data folder."""
        return f"{self.name}.txt.xz"


# The order decides which copy of a repeated passage is kept: the earliest one.
SOURCES = (
    Source(
        "stories-train", "public domain", "Project Gutenberg, through rcdm-uga/Gutenberg_Text", BOOK_BREAK
    ),
    Source(
        "picture-books", "CC BY 4.0", "Pratham Books, through global-asp/pb-source", STORY_BREAK, repeat=2
    ),
    Source("fairytaleqa-stories", "Apache-2.0", "uci-soe/FairytaleQAData", STORY_BREAK),
)

_CHARACTERS = str.maketrans(
    {
        "“": '"',
        "”": '"',
        "‘": "'",
        "’": "'",
        "ʼ": "'",
        "ʻ": "'",
        "´": "'",
        "`": "'",
        "…": "...",
        "\u00a0": " ",
    }
)
_DASH = re.compile(r"\s*[—―]\s*|\s+–\s*|–\s+|(?<=\W)–|–(?=\W)")
_EMPHASIS = re.compile(r"_+|\*+|^#+\s*|^\|")
_APPARATUS = re.compile(
    r"transcriber|project gutenberg|e-text|\ufffd|¶|\{illust|^\{.*\}$|^\*+\w|\bfcap\b"
    r"|\b(12mo|16mo|8vo|4to)\b|\bprice,? [$£\d]|changed (from .*)?to [\"'/]|^(on )?(pg\.?|page) \d+",
    re.IGNORECASE,
)
_WORD = re.compile(r"[^\W\d_]+")
_HYPHENATED = re.compile(r"\w-\w")
_END = re.compile(r"^(the )?end\.?$", re.IGNORECASE)
_FUNCTION_WORDS = frozenset(
    [
        "the",
        "a",
        "an",
        "and",
        "of",
        "to",
        "in",
        "is",
        "was",
        "he",
        "she",
        "it",
        "i",
        "you",
        "that",
        "his",
        "her",
        "with",
        "for",
        "as",
        "on",
        "at",
        "be",
        "have",
        "had",
        "not",
        "but",
        "they",
        "we",
        "him",
        "my",
        "me",
        "this",
        "said",
        "so",
        "all",
        "are",
        "by",
        "from",
        "or",
        "what",
        "there",
        "were",
        "which",
        "their",
        "out",
        "up",
        "no",
        "them",
    ]
)


def read_file(folder: Path, filename: str) -> str:
    """Return the text of one xz-compressed UTF-8 file; a missing or damaged file is a clear error."""
    path = folder / filename
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: --data must name the folder that holds {filename}")
    try:
        return lzma.decompress(path.read_bytes()).decode("utf-8")
    except (lzma.LZMAError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not an xz-compressed UTF-8 text: {error}") from error


def clean_paragraph(paragraph: str) -> str:
    """Return the paragraph in the conventions of the evaluation text, or "" if it is not story text."""
    text = unicodedata.normalize("NFC", paragraph).strip()
    if _APPARATUS.search(text):
        return ""
    text = _DASH.sub("--", text.translate(_CHARACTERS)).replace("–", "-")
    lines = (" ".join(_EMPHASIS.sub("", line).split()) for line in text.split("\n"))
    text = "\n".join(line for line in lines if line)
    words = _WORD.findall(text.lower())
    if not words:
        return ""
    english = sum(word in _FUNCTION_WORDS for word in words)
    return "" if len(words) >= 20 and english < 0.1 * len(words) else text


def clean_document(text: str) -> list[str]:
    """Split a book or story into cleaned paragraphs; empty if it is not running text."""
    raw = [part for part in re.split(r"\n\s*\n", text) if part.strip()]
    ends = [number for number, part in enumerate(raw) if _END.match(part.strip())]
    if ends and sum(map(len, raw[: ends[-1]])) > 0.8 * len(text):
        raw = raw[: ends[-1] + 1]  # what follows the end of a book is advertisements and notes
    paragraphs = [paragraph for paragraph in map(clean_paragraph, raw) if paragraph]
    words = sum(len(paragraph.split()) for paragraph in paragraphs)
    # Books "in words of one syllable" print "sis-ter" and "Al-ice"; they would teach wrong spellings.
    if words > 1000 and sum(len(_HYPHENATED.findall(p)) for p in paragraphs) > 0.05 * words:
        return []
    return paragraphs


def read_valid(folder: Path) -> list[str]:
    """Return the evaluation books exactly as they are on disk, without the separator between them."""
    return [book.strip("\n") for book in read_file(folder, VALID_FILE).split(BOOK_BREAK)]


def read_held_out(folder: Path) -> list[str]:
    """Return every text that training text must not repeat: evaluation books and evaluation tales."""
    tales: dict[str, dict[str, None]] = {}
    for line in read_file(folder, HELD_OUT_TALES).splitlines():
        row = json.loads(line)
        tales.setdefault(row["story"], {})[row["context"]] = None
    return read_valid(folder) + ["\n\n".join(parts) for parts in tales.values()]


def read_train(folder: Path) -> tuple[list[Document], dict[str, dict[str, int]]]:
    """Return the training documents (repeats not yet applied) and, per source, what was removed."""
    documents: list[Document] = []
    report: dict[str, dict[str, int]] = {}
    for source in SOURCES:
        text = read_file(folder, source.filename)
        parts = [part for part in text.split(source.separator) if part.strip()]
        cleaned = [paragraphs for paragraphs in map(clean_document, parts) if paragraphs]
        documents += [Document(source.name, paragraphs) for paragraphs in cleaned]
        report[source.name] = {"raw_bytes": len(text.encode()), "raw_documents": len(parts)}
        report[source.name]["cleaned_bytes"] = _size(documents, source.name)
    without_held_out = drop_held_out(documents, read_held_out(folder))
    unique = drop_duplicates(without_held_out)
    for source in SOURCES:
        before, between, after = (_size(docs, source.name) for docs in (documents, without_held_out, unique))
        report[source.name] |= {
            "held_out_bytes_removed": before - between,
            "duplicate_bytes_removed": between - after,
            "documents": sum(document.source == source.name for document in unique),
            "bytes": after,
        }
    return unique, report


def _size(documents: list[Document], source: str) -> int:
    return sum(len(document.text.encode()) for document in documents if document.source == source)
