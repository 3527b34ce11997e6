"""Prepare the training data: documents to tokens, in flat files that training maps into memory.

``train.bin`` and ``valid.bin`` hold uint16 token ids. Every document follows an ``<|endoftext|>`` (id 0), and
one more closes the file. ``*.index.json`` lists the documents, ``manifest.json`` describes everything.

Run ``python -m training.prepare --data DIR --out DIR --vocab 8192``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from tqdm import tqdm

from .text import HELD_OUT_TALES, SOURCES, VALID_FILE, read_train, read_valid
from .tokenizer import DEFAULT_VOCAB, bytes_per_token, encode, save, train_tokenizer

MAX_VOCAB = 2**16
SEED = 0


@dataclass(frozen=True)
class Encoded:
    """One document as tokens."""

    source: str
    tokens: np.ndarray
    size: int  # bytes of UTF-8


def encode_documents(tokenizer: Tokenizer, documents: Sequence[tuple[str, str]], label: str) -> list[Encoded]:
    """Tokenize (source, text) pairs, with a progress bar in bytes."""
    sizes = [len(text.encode()) for _, text in documents]
    encoded = []
    with tqdm(total=sum(sizes), desc=label, unit="B", unit_scale=True) as progress:
        for (source, text), size in zip(documents, sizes, strict=True):
            encoded.append(Encoded(source, np.array(encode(tokenizer, text), dtype=np.uint16), size))
            progress.update(size)
    return encoded


def write_tokens(path: Path, documents: Sequence[Encoded]) -> dict[str, Any]:
    """Write ``path`` and its index; return the totals."""
    index = []
    position = 0
    separator = np.zeros(1, dtype=np.uint16)
    with path.open("wb") as file:
        for document in documents:
            file.write(separator.tobytes() + document.tokens.tobytes())
            entry = {"source": document.source, "start": position + 1, "tokens": len(document.tokens)}
            index.append(entry | {"bytes": document.size})
            position += 1 + len(document.tokens)
        file.write(separator.tobytes())
    lines = ",\n".join(json.dumps(entry) for entry in index)
    path.with_suffix(".index.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    return {
        "file": path.name,
        "sha256": sha256(path),
        "documents": len(documents),
        "tokens": position + 1,
        "text_tokens": position - len(documents),
        "text_bytes": sum(document.size for document in documents),
    }


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def prepare(data: Path, out: Path, vocab_size: int, context_length: int) -> dict[str, Any]:
    """Write tokenizer, token files and manifest to ``out``; return the manifest."""
    if vocab_size > MAX_VOCAB:
        raise ValueError(f"--vocab {vocab_size}: token ids are stored in 16 bits, so at most {MAX_VOCAB}")
    valid = read_valid(data)
    print("reading, cleaning and deduplicating the training texts", flush=True)
    documents, report = read_train(data)
    out.mkdir(parents=True, exist_ok=True)
    print(f"training the tokenizer on {len(documents)} documents", flush=True)
    tokenizer = train_tokenizer([document.text for document in documents], vocab_size)
    save(tokenizer, out, context_length)

    repeats = {source.name: source.repeat for source in SOURCES}
    pairs = [(document.source, document.text) for document in documents]
    once = encode_documents(tokenizer, pairs, "train")
    train = [document for document in once for _ in range(repeats[document.source])]
    order = np.random.default_rng(SEED).permutation(len(train))
    train_totals = write_tokens(out / "train.bin", [train[number] for number in order])
    valid_pairs = [("stories-valid", text) for text in valid]
    valid_totals = write_tokens(out / "valid.bin", encode_documents(tokenizer, valid_pairs, "valid"))

    manifest = {
        "tokenizer": {
            "vocab_size": vocab_size,
            "sha256": sha256(out / "tokenizer.json"),
            "bytes_per_token_valid": round(bytes_per_token(tokenizer, valid), 4),
        },
        "train": train_totals,
        "valid": valid_totals,
        "sources": [
            {
                "name": source.name,
                "licence": source.licence,
                "origin": source.origin,
                "sha256": sha256(data / source.filename),
                "repeat": source.repeat,
                "tokens_once": sum(
                    len(document.tokens) for document in once if document.source == source.name
                ),
            }
            | report[source.name]
            for source in SOURCES
        ],
        "held_out": [{"file": name, "sha256": sha256(data / name)} for name in (VALID_FILE, HELD_OUT_TALES)],
    }
    (out / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    return manifest


def main() -> None:
    """Run the preparation from the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m training.prepare", description="Prepare the training data."
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with the training texts")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument(
        "--vocab", type=int, default=DEFAULT_VOCAB, help="vocabulary size (default %(default)s)"
    )
    parser.add_argument(
        "--context", type=int, default=1024, help="context length written to the tokenizer config"
    )
    arguments = parser.parse_args()
    try:
        manifest = prepare(arguments.data, arguments.out, arguments.vocab, arguments.context)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    for part in ("train", "valid"):
        totals = manifest[part]
        print(f"{part}: {totals['tokens']:,} tokens in {totals['documents']:,} documents")


if __name__ == "__main__":
    main()
