"""The synthetic checkpoints of the benchmarks are what the families expect."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from pocketlm.families import build_graph, model_types
from pocketlm.interpret.reference import Reference

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benches import checkpoint, synthetic, vocabulary
from benches.shapes import SHAPES, tensors


@pytest.mark.parametrize("shape", SHAPES)
def test_tensors_are_those_of_the_family(shape: str) -> None:
    if SHAPES[shape]["model_type"] not in model_types():
        pytest.skip(f"{SHAPES[shape]['model_type']} is not a family of this version")
    weights = build_graph(SHAPES[shape]).weights()
    assert dict(tensors(SHAPES[shape])) == {name: weight.shape for name, weight in weights.items()}


@pytest.mark.parametrize("dtype", checkpoint.DTYPES)
def test_a_checkpoint_is_whole_and_finite(
    dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "SHARD_BYTES", 4 << 20)
    monkeypatch.setattr(synthetic, "PIECE", 10_001)
    out = tmp_path / "tiny"
    synthetic.write(synthetic.parse(["llama-tiny", str(out), "--vocab", "700", "--dtype", dtype, "--quiet"]))
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]
    found = checkpoint.Checkpoint(out)
    graph = build_graph(found.config)
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(found.names()) == set(graph.weights())
    assert len(set(index["weight_map"].values())) > 1
    logits = Reference(graph, {name: found[name] for name in found.names()}).logits([1, 5, 99, 699])
    assert np.isfinite(logits).all()
    assert 0.5 < logits.std() < 2
    again = tmp_path / "again"
    again_args = ["llama-tiny", str(again), "--vocab", "700", "--dtype", dtype, "--quiet"]
    synthetic.write(synthetic.parse(again_args))
    assert {p.name: p.read_bytes() for p in out.iterdir()} == {
        p.name: p.read_bytes() for p in again.iterdir()
    }


@pytest.mark.parametrize("size", [600, 3001, 4096])
@pytest.mark.parametrize("last", [False, True])
def test_the_vocabulary_has_the_exact_size(size: int, last: bool) -> None:
    special = [f"<{i}>" for i in range(200)] if last else ["<unk>", "<s>", "</s>"]
    tokenizer = Tokenizer.from_str(json.dumps(vocabulary.train(size, special, last, seed=3)))
    assert tokenizer.get_vocab_size() == size
    assert sorted(tokenizer.get_vocab().values()) == list(range(size))
    assert tokenizer.token_to_id(special[1]) == (size - 199 if last else 1)
    text = "Straight through it, naïvely: ☃ 12\n\tand on."
    assert tokenizer.decode(tokenizer.encode(text).ids) == text
    with pytest.raises(ValueError, match="more than"):
        vocabulary.train(100, special, last, seed=3)


def test_bf16_rounds_to_nearest_even() -> None:
    values = np.array([1.0, 1 + 2**-8, 1 + 3 * 2**-8, -(1 + 2**-8 + 2**-20), 3e38], np.float32)
    widened = (checkpoint.to_bf16(values).astype(np.uint32) << 16).view(np.float32)
    assert widened[:4].tolist() == [1.0, 1.0, 1 + 2**-6, -(1 + 2**-7)]
