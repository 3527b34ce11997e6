"""Opening models: what is sound opens, and each kind of bad input is refused by name."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pocketlm
from checkpoints import bf16, safetensors_bytes, weights, write_checkpoint, write_sharded
from independent.cases import llama, openelm
from pocketlm._core import WeightStore
from pocketlm.builder import GraphBuilder
from pocketlm.errors import (
    ConfigError,
    FileFormatError,
    MissingFileError,
    ParameterError,
    StorageError,
    TemplateError,
    TokenizerError,
    UnsupportedError,
    WeightError,
)
from pocketlm.graph import Weight
from pocketlm.loading import LoadedModel, open_model
from pocketlm.loading import tokenizer as reading
from pocketlm.loading.check import check_weights
from pocketlm.loading.files import write_whole

CONFIGS = {"llama": llama(), "tied": llama(tie_word_embeddings=True), "openelm": openelm()}
UP = "model.layers.1.mlp.up_proj.weight"


def rewritten(tmp_path: Path, **changes: np.ndarray[Any, Any] | None) -> Path:
    """A checkpoint with some tensors replaced, added, or (``None``) left out."""
    arrays: dict[str, Any] = {**weights(llama()), **changes}
    return write_checkpoint(tmp_path / "m", arrays={k: v for k, v in arrays.items() if v is not None})


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("sharded", [False, True])
def test_a_sound_model_opens(tmp_path: Path, config: dict[str, Any], sharded: bool) -> None:
    arrays = weights(config)
    path = tmp_path / "model"
    if sharded:
        write_sharded(path, config, arrays)
    else:
        write_checkpoint(path, config, arrays)
    for given in (path, str(path)):
        model = open_model(given)
        assert isinstance(model, LoadedModel)
        assert set(model.store.names()) == set(model.graph.weights())
        assert model.config == config
        assert model.read_tokenizer().inner.encode("w3 w5").ids == [3, 5]
        for name, array in arrays.items():
            np.testing.assert_array_equal(model.store.dense(name), array)


def test_loading_reads_the_tokenizer_once_and_says_what_is_wrong_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, read = write_checkpoint(tmp_path / "m"), []
    real = reading.read_small
    monkeypatch.setattr(reading, "read_small", lambda file, most: (read.append(file), real(file, most))[1])
    with pocketlm.load(path) as lm:
        assert lm.tokenizer.encode("w3 w5") == [3, 5]
    assert read == [path / "tokenizer.json"]
    (path / "tokenizer.json").write_text("{")
    with pytest.raises(TokenizerError, match=r"tokenizer\.json: damaged"):
        pocketlm.load(path)
    (path / "config.json").unlink()
    with pytest.raises(MissingFileError, match=r"config\.json"):
        pocketlm.load(path)
    for wrong in ("", 5, "a\0b"):
        with pytest.raises(ParameterError, match="path_or_id"):
            pocketlm.load(wrong)  # type: ignore[arg-type]


def test_the_small_files_are_read(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "m")
    model = open_model(path)
    assert model.generation_config == model.tokenizer_config == {}
    assert model.chat_template is None
    (path / "generation_config.json").write_text('{"temperature": 0.6}')
    config = path / "tokenizer_config.json"
    config.write_text('{"chat_template": "a"}')
    assert open_model(path).chat_template == "a"
    assert open_model(path).generation_config == {"temperature": 0.6}
    config.write_text(
        '{"chat_template": [{"name": "x", "template": "b"}, {"name": "default", "template": "c"}]}'
    )
    assert open_model(path).chat_template == "c"
    (path / "chat_template.jinja").write_text("d")
    assert open_model(path).chat_template == "d"
    (path / "chat_template.jinja").unlink()
    for bad in (
        "7",
        '{"a": 1}',
        '[{"name": "default", "template": 5}]',
        '[{"name": ["x"], "template": [1]}]',
    ):
        config.write_text(f'{{"chat_template": {bad}}}')
        with pytest.raises(TemplateError, match="tokenizer_config"):
            open_model(path)
    config.write_text("{")
    with pytest.raises(ConfigError, match="tokenizer_config"):
        open_model(path)


def test_files_are_written_whole_where_they_lie(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    far, link = tmp_path / "far" / "file", tmp_path / "link"
    link.symlink_to(far)
    write_whole(link, "é")  # a link that leads to nothing yet
    far.chmod(0o600)
    write_whole(link, "more")
    assert link.is_symlink() and far.read_text() == "more" and far.stat().st_mode & 0o777 == 0o600
    assert [file.name for file in far.parent.iterdir()] == ["file"]
    write_whole(Path("/dev/null"), "x")
    assert Path("/dev/null").is_char_device()
    for bad, error in ((tmp_path / "no" / "file", MissingFileError), (tmp_path / "far", StorageError)):
        with pytest.raises(error, match=f"^{bad}: "):
            write_whole(bad, "x")
    (tmp_path / "round").symlink_to("round")
    with pytest.raises(StorageError, match=f"^{tmp_path / 'round'}: "):
        write_whole(tmp_path / "round", "x")
    assert (tmp_path / "round").is_symlink()


def test_places_that_hold_no_model(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "m")
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    for place, message in (
        (tmp_path / "nowhere", "nowhere"),
        (path / "config.json", "not a directory"),
        (path / "model.safetensors", "give the directory"),
        (tmp_path / "m.gguf", "GGUF is not read"),
        (tmp_path, r"config\.json: no such file; a model's directory has one"),
        ("/dev/null", "not a directory"),
    ):
        with pytest.raises(MissingFileError, match=message):
            open_model(place)
    for bad in ("", None, 3, b"m", "a\0b", "~nobody-of-that-name/x"):
        with pytest.raises(ParameterError, match="path_or_id"):
            open_model(bad)  # type: ignore[arg-type]
    with pytest.raises((MissingFileError, StorageError)):
        open_model("a" * 10_000)
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingFileError, match=r"config\.json"):
        open_model(tmp_path / "empty")
    (path / "model.safetensors").unlink()
    with pytest.raises(MissingFileError, match="neither"):
        open_model(path)
    (path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(UnsupportedError, match=r"pytorch_model\.bin"):
        open_model(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_files_that_may_not_be_read(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "m")
    (path / "model.safetensors").chmod(0)
    with pytest.raises(StorageError, match=r"model\.safetensors"):
        open_model(path)


def test_hub_ids_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(MissingFileError, match="owner/model"):
        open_model("owner/model")
    with pytest.raises(MissingFileError, match="owner/model@v2"):
        open_model("owner/model", revision="v2")
    with pytest.raises(MissingFileError, match="no such revision"):
        open_model("owner/model", revision="\ud800")
    for no_id in ("./owner/model", "../model", "owner/model/more", "model"):
        with pytest.raises(MissingFileError, match="no such directory"):
            open_model(no_id)


def test_a_hub_download_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_checkpoint(tmp_path / "snapshot")
    asked: list[Any] = []

    def download(name: str, **options: Any) -> str:
        asked.append((name, options["revision"]))
        assert not any(pattern.endswith((".bin", ".py", ".pt")) for pattern in options["allow_patterns"])
        return str(path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert open_model("owner/model", revision="main").path == path
    assert asked == [("owner/model", "main")]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "[" * 100_000,
        '{"model_type": ' + "9" * 5000 + "}",
        '{"model_type": "llama"',
        '{"a": \ud800}',
    ],
)
def test_configurations_that_are_not_json_objects(tmp_path: Path, text: str) -> None:
    path = write_checkpoint(tmp_path / "m")
    (path / "config.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(ConfigError, match=r"config\.json") as caught:
        open_model(path)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "name", ["config.json", "generation_config.json", "tokenizer_config.json", "chat_template.jinja"]
)
def test_small_files_that_are_not_what_they_should_be(tmp_path: Path, name: str) -> None:
    path = write_checkpoint(tmp_path / "m")
    file = path / name
    file.unlink(missing_ok=True)
    with file.open("wb") as out:
        out.truncate(1 << 40)  # takes no space on the disk
    with pytest.raises((ConfigError, FileFormatError), match=f"{name}: larger than"):
        open_model(path)
    for make in (
        lambda: os.mkfifo(file),
        lambda: file.symlink_to("/dev/zero"),
        file.mkdir,
    ):
        file.rmdir() if file.is_dir() else file.unlink()
        make()
        with pytest.raises(MissingFileError, match=f"{name}: is not a regular file"):
            open_model(path)


def test_weights_that_are_no_file(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "m")
    file = path / "model.safetensors"
    sound = file.read_bytes()
    for make, message in (
        (file.mkdir, "directory"),
        (lambda: os.mkfifo(file), "regular"),
        (lambda: file.symlink_to("/dev/zero"), "regular"),
        (lambda: file.write_bytes(b""), "empty"),
    ):
        file.rmdir() if file.is_dir() else file.unlink()
        make()
        with pytest.raises((MissingFileError, FileFormatError), match=rf"model\.safetensors.*{message}"):
            open_model(path)
    file.unlink()
    file.symlink_to(file.name)
    with pytest.raises((MissingFileError, StorageError), match="m"):
        open_model(path)
    # A cache of downloads is made of links.
    file.unlink()
    (tmp_path / "blob").write_bytes(sound)
    file.symlink_to(tmp_path / "blob")
    open_model(path)


def test_names_of_any_language(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "modèle 模型 \udcff")
    assert open_model(path).path == path
    (path / "config.json").unlink()
    with pytest.raises(MissingFileError, match=r"config\.json"):
        open_model(path)


def test_sizes_that_overflow(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "m")
    for key in ("vocab_size", "hidden_size", "num_hidden_layers", "intermediate_size"):
        for size in (2**31, 2**63, 2**200):
            (path / "config.json").write_text(json.dumps(llama(**{key: size})))
            with pytest.raises((ConfigError, WeightError), match=f"{key}|tensor"):
                open_model(path)


def test_shards_that_do_not_fit_their_index(tmp_path: Path) -> None:
    config, arrays = llama(), weights(llama())
    path = write_sharded(tmp_path / "m", config, arrays)
    index_path = path / "model.safetensors.index.json"
    index = json.loads(index_path.read_text())
    second = path / "model-00002-of-00003.safetensors"
    content = second.read_bytes()

    second.unlink()
    with pytest.raises(MissingFileError, match="model-00002-of-00003"):
        open_model(path)
    second.write_bytes(content[: len(content) // 2])
    with pytest.raises(FileFormatError, match="model-00002-of-00003"):
        open_model(path)
    second.write_bytes(content)
    open_model(path)

    first = next(iter(arrays))
    for outside in ("../m/x.safetensors", "/etc/passwd", "a/b", "..\\x", "", ".", "C:x", "x\0y", 7, None):
        changed = {**index["weight_map"], first: outside}
        index_path.write_text(json.dumps({"weight_map": changed}))
        with pytest.raises(FileFormatError, match=r"index\.json"):
            open_model(path)
    for bad in ({}, [], None, "x"):
        index_path.write_text(json.dumps({"weight_map": bad}))
        with pytest.raises(FileFormatError, match="weight_map"):
            open_model(path)
    index_path.write_text(json.dumps({"weight_map": {**index["weight_map"], "ghost": second.name}}))
    with pytest.raises(FileFormatError, match="ghost"):
        open_model(path)
    # A tensor in two shards.
    index_path.write_text(json.dumps(index))
    third = path / "model-00003-of-00003.safetensors"
    third.write_bytes(safetensors_bytes({**{n: arrays[n] for n in list(arrays)[2::3]}, first: arrays[first]}))
    with pytest.raises(FileFormatError, match=f"{third.name}.*{first}"):
        open_model(path)


def test_tensors_that_do_not_fit_the_graph(tmp_path: Path) -> None:
    up = weights(llama())[UP]
    for changes, message in (
        ({UP: None}, f"{UP}.*missing"),
        ({UP: up[:-1]}, rf"{UP}.*\[99, 72\].*\[100, 72\]"),
        ({UP: up.T}, rf"{UP}.*\[72, 100\]"),
        ({UP: up[None]}, UP),
        ({UP: up.astype(np.int64)}, f"{UP}.*I64"),
        ({"model.layers.0.self_attn.q_proj.bias": np.zeros(72, np.float32)}, "q_proj.bias.*no place"),
        ({"model.layers.2.mlp.up_proj.weight": up}, "layers.2.*no place"),
        ({UP: np.where(np.arange(72) == 5, np.float32(np.nan), up)}, r"model.safetensors.*\[0, 5\]"),
        ({"model.norm.weight": np.full(72, np.inf, np.float32)}, "model.norm.weight"),
        ({UP: bf16(np.full_like(up, -np.inf))}, UP),
    ):
        with pytest.raises(WeightError, match=f"(?s){message}"):
            open_model(rewritten(tmp_path, **changes))


def test_tables_that_checkpoints_carry_along_do_no_harm(tmp_path: Path) -> None:
    table = np.ones(12, np.float32)
    path = rewritten(
        tmp_path, **{"model.layers.0.self_attn.rotary_emb.inv_freq": table, "step": np.ones(1, np.int64)}
    )
    open_model(path)
    config = llama(tie_word_embeddings=True)
    tied = weights(config)
    tied["lm_head.weight"] = tied["model.embed_tokens.weight"]
    open_model(write_checkpoint(tmp_path / "tied", config, tied))


def test_transposed_and_shared_weights() -> None:
    graph = GraphBuilder("x", 8, 16)
    x = graph.embed("embed", Weight("e", (8, 6)))
    x = graph.linear(x, "a", "conv", 10, transposed=True)
    graph._append(type(graph._ops[x]), "b", 6, x=x, weight=Weight("copy", (6, 10), shared_with="first"))
    graph.linear(3 - 1, "head", "e", 8)
    store = WeightStore()
    store.add("e", np.zeros((8, 6), np.float32))
    store.add("first", np.zeros((6, 10), np.float32))
    store.add("conv", np.zeros((6, 10), np.float32))
    check_weights(graph.build(), store, "here")
    wrong = WeightStore()
    wrong.add("e", np.zeros((8, 6), np.float32))
    wrong.add("first", np.zeros((6, 10), np.float32))
    wrong.add("conv", np.zeros((10, 6), np.float32))
    with pytest.raises(WeightError, match="conv"):
        check_weights(graph.build(), wrong, "here")


def test_tokenizers_that_do_not_match(tmp_path: Path) -> None:
    for vocab, message in ((98, "id 97"), (40, "40 tokens"), (1, "1 tokens")):
        with pytest.raises(TokenizerError, match=message):
            open_model(write_checkpoint(tmp_path / "m", vocab=vocab)).read_tokenizer()
    open_model(write_checkpoint(tmp_path / "m", vocab=60)).read_tokenizer()
    file = tmp_path / "m" / "tokenizer.json"
    for text in ("", "{}", "[1]", '{"model": {"type": "Nothing"}}', "\0" * 100):
        file.write_text(text)
        with pytest.raises(TokenizerError, match=r"tokenizer\.json"):
            open_model(tmp_path / "m").read_tokenizer()
    file.unlink()
    with pytest.raises(TokenizerError, match=r"tokenizer\.json"):
        open_model(tmp_path / "m").read_tokenizer()
