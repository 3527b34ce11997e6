"""Sessions on disk: they go on as if they had never stopped, and damaged files are refused."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pocketlm
from checkpoints import write_checkpoint
from independent.cases import llama
from pocketlm.errors import FileFormatError, MissingFileError, ParameterError, StorageError
from pocketlm.generate import saved
from pocketlm.generate.params import SamplingParams
from tokenizer_files import byte_level, save

PARAMS = SamplingParams(max_tokens=40, temperature=0.7, seed=5)


def make(directory: Path, **config: int) -> Path:
    tokenizer = byte_level()
    write_checkpoint(directory, llama(vocab_size=tokenizer.get_vocab_size() + 3, eos_token_id=1, **config))
    return save(directory, tokenizer)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def lm(directory: Path) -> Iterator[pocketlm.LM]:
    with pocketlm.load(directory) as model:
        yield model


@pytest.fixture(scope="module")
def file(lm: pocketlm.LM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sessions") / "talk.safetensors"
    with lm.session("Be brief.", PARAMS) as chat:
        chat.respond("once upon a time")
        chat.save(path)
    return path


def test_a_restored_session_goes_on_as_the_first(lm: pocketlm.LM, directory: Path, tmp_path: Path) -> None:
    path = tmp_path / "talk.safetensors"
    with lm.session("Be brief.", PARAMS) as chat:
        chat.save(path)  # nothing was computed yet
        with lm.session(params=PARAMS, restore=path) as early:
            assert early.transcript == chat.transcript
        chat.respond("once upon a time")
        chat.save(path)
        chat.respond("the cat")
        expected = chat.respond("sat", logprobs=2)
        transcript = chat.transcript
    lm._scheduler._prefixes.clear()
    with pocketlm.load(directory, threads=1) as other:
        for model in (lm, other):
            with model.session(params=PARAMS, restore=path) as chat:
                assert len(chat.transcript) == 3
                first = chat.respond("the cat")
                assert first.usage.reused_tokens > 20
                found = chat.respond("sat", logprobs=2)
            assert chat.transcript == transcript
            assert (found.tokens, found.logprobs) == (expected.tokens, expected.logprobs)
    assert list(tmp_path.iterdir()) == [path]


def test_without_room_the_state_is_computed_anew(directory: Path, file: Path, lm: pocketlm.LM) -> None:
    with lm.session(params=PARAMS, restore=file) as chat:
        expected = chat.respond("the cat").text
    with pocketlm.load(directory, context=256, cache_tokens=256) as small:
        running = small.stream([5] * 150, max_tokens=60, ignore_eos=True)
        next(running)
        chat = small.session(params=PARAMS, restore=file)
        running.close()
        assert chat.respond("the cat").text == expected


def test_another_version_keeps_the_transcript_only(
    lm: pocketlm.LM, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saved, "__version__", "0.0.0")
    found = saved.read(file, lm._fingerprint())
    assert len(found.messages) == 3 and found.tokens == () and found.cache == b""


def test_other_models_are_refused(directory: Path, file: Path, tmp_path: Path) -> None:
    deeper = make(tmp_path / "deeper", num_hidden_layers=3)
    with pocketlm.load(deeper) as other, pytest.raises(ParameterError, match="another model"):
        other.session(restore=file)
    with pocketlm.load(directory, precise=True) as precise:
        assert precise._fingerprint() != ""
        with pytest.raises(ParameterError, match="another model"):
            precise.session(restore=file)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_damage_is_noticed(lm: pocketlm.LM, file: Path, data: st.DataObject) -> None:
    whole = file.read_bytes()
    broken = bytearray(whole)
    match data.draw(st.sampled_from(["cut", "flip", "grow"])):
        case "cut":
            del broken[data.draw(st.integers(0, len(whole) - 1)) :]
        case "flip":
            # Mostly in the header, which is small beside the rest.
            at = data.draw(st.one_of(st.integers(0, 1200), st.integers(0, len(whole) - 1)))
            broken[at % len(whole)] ^= 1 << data.draw(st.integers(0, 7))
        case _:
            broken += b"\0"
    path = file.with_name("broken.safetensors")
    path.write_bytes(bytes(broken))
    try:
        with pytest.raises((FileFormatError, ParameterError)):
            lm.session(restore=path)
    finally:
        path.unlink()


def test_every_byte_of_the_header_counts(lm: pocketlm.LM, file: Path) -> None:
    whole = file.read_bytes()
    path = file.with_name("flipped.safetensors")
    for at in range(8 + int.from_bytes(whole[:8], "little")):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises((FileFormatError, ParameterError)):
            lm.session(restore=path)
    path.unlink()


def test_a_session_is_restored_into_its_own_kind_of_cache(directory: Path, tmp_path: Path) -> None:
    path = tmp_path / "talk.safetensors"
    with pocketlm.load(directory, kv_dtype="int8") as lm, lm.session("Be brief.", PARAMS) as chat:
        chat.respond("once upon a time")
        chat.save(path)
        expected = chat.respond("the cat").tokens
    with pocketlm.load(directory, kv_dtype="int8", threads=1) as lm:
        with lm.session(params=PARAMS, restore=path) as chat:
            found = chat.respond("the cat")
        assert found.usage.reused_tokens > 10 and found.tokens == expected
    with pocketlm.load(directory) as lm, pytest.raises(ParameterError, match="kv_dtype"):
        lm.session(restore=path)


def test_what_is_no_session_is_refused(lm: pocketlm.LM, directory: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingFileError):
        lm.session(restore=tmp_path / "none")
    with pytest.raises(MissingFileError):
        lm.session(restore=tmp_path)
    with pytest.raises(FileFormatError, match="not a saved session"):
        lm.session(restore=directory / "model.safetensors")
    other = tmp_path / "talk.json"
    other.write_text('[\n  {"role": "user"}\n]\n')
    with pytest.raises(FileFormatError, match=r"talk.json: not a saved session, as session.save\(\) writes$"):
        lm.session(restore=other)
    with pytest.raises(ParameterError, match="instructions"):
        lm.session("Be brief.", restore=tmp_path)
    with pytest.raises(ParameterError, match="restore"):
        lm.session(restore="")


@pytest.mark.parametrize(
    "transcript",
    ["", "[" * 100_000, "{}", "[1]", '[["user"]]', '[["user", 1]]', '[["boss", "x"]]', "[[[], 1]]"],
)
def test_transcripts_are_checked(tmp_path: Path, transcript: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        json, "dumps", lambda value, **options: transcript if value == () else real(value, **options)
    )
    path = tmp_path / "x.safetensors"
    saved.write(path, saved.Saved((), (), b""), "m")
    monkeypatch.undo()
    if transcript == "{}":
        assert saved.read(path, "m").messages == ()
        return
    with pytest.raises(FileFormatError):
        saved.read(path, "m")


real = json.dumps


def test_a_session_is_saved_where_links_lead_and_as_other_files_are(
    lm: pocketlm.LM, file: Path, tmp_path: Path
) -> None:
    (tmp_path / "far").mkdir()
    far, link, pipe = tmp_path / "far" / "talk", tmp_path / "link", tmp_path / "pipe"
    link.symlink_to(far)
    plain = tmp_path / "plain"
    plain.touch()
    os.mkfifo(pipe)
    with lm.session("Be brief.", PARAMS) as chat:
        chat.respond("once upon a time")
        chat.save(link)
        assert link.is_symlink() and far.stat().st_mode == plain.stat().st_mode  # as the umask has it
        assert far.read_bytes() == file.read_bytes()
        far.chmod(0o640)
        chat.save(link)
        assert link.is_symlink() and far.stat().st_mode & 0o777 == 0o640
        reader = os.open(pipe, os.O_RDWR)
        try:
            with lm.session("Short.") as short:  # what fits into a pipe that nobody reads from yet
                short.save(pipe)
                short.save(plain)
            assert pipe.is_fifo() and os.read(reader, 1 << 16) == plain.read_bytes()
        finally:
            os.close(reader)
        chat.save(Path("/dev/null"))
        assert Path("/dev/null").is_char_device()
    assert [entry.name for entry in far.parent.iterdir()] == ["talk"]


def test_a_session_is_not_saved_over_what_must_not_be_written(
    lm: pocketlm.LM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "talk"
    path.write_text("x")
    path.chmod(0o444)
    monkeypatch.setattr("os.access", lambda *_: False)  # to the superuser all may be written
    with lm.session() as chat, pytest.raises(StorageError, match=f"^{re.escape(str(path))}: Permission"):
        chat.save(path)
    assert path.read_text() == "x" and list(tmp_path.iterdir()) == [path]


def test_saving_fails_whole(
    lm: pocketlm.LM, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with lm.session(params=PARAMS) as chat:
        chat.respond("once")
        # Errors name the file that was asked for, not the one beside it that becomes it.
        for path in (tmp_path / "no" / "such" / "place", tmp_path, file / "x"):
            with pytest.raises((StorageError, MissingFileError), match=f"^{re.escape(str(path))}: "):
                chat.save(path)
        before = file.read_bytes()

        def fail(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("os.fsync", fail)
        with pytest.raises(StorageError, match="No space"):
            chat.save(file)
        monkeypatch.undo()
        assert file.read_bytes() == before and list(file.parent.iterdir()) == [file]
        stream = chat.stream_response("twice")
        with pytest.raises(ParameterError, match="still answering"):
            chat.save(tmp_path / "x")
        stream.close()
    with pytest.raises(ParameterError, match="closed"):
        chat.save(tmp_path / "x")
