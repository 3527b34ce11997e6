"""Writes pocketlm's own model directory: atomically, and resumable after a kill at any moment.

Work happens in ``DST.partial-<key>`` beside the destination, where that leads if it is a link; the key says
what is being made, so that only the same work is resumed. The file of weights has its final size from the
start; each tensor is written at its place, and then a line of a journal records its checksums. Errors that
the same work would come to again leave nothing. A tensor without a line, or whose bytes do not have these
checksums, is written again. When all is there and synced to disk, what only the making needs is deleted and
one rename makes the directory appear under its name.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import sys
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from pocketlm.errors import AdapterError, BudgetError, ParameterError, StorageError, WeightError
from pocketlm.loading.files import forget_pages, resolved, storage_errors
from pocketlm.loading.layout import Layout
from pocketlm.loading.lock import open_locked
from pocketlm.loading.safetensors import SINGLE

JOURNAL = "journal.jsonl"
_FINAL = AdapterError, BudgetError, WeightError  # to which the same work would come again
_CHUNK = 16 << 20
_SPARE_BYTES = 16 << 20  # tokenizer, configuration, journal


class DirectoryWriter:
    """A model directory in the making. Use as a context manager; :meth:`finish` makes it appear."""

    def __init__(
        self, destination: Path, key: str, *, overwrite: bool = False, named: Path | None = None
    ) -> None:
        self._given = destination
        self.destination = resolved(destination)  # a link stays one: a directory cannot take its name
        self._named = named or destination  # by errors, where nothing can be written beside it
        self.partial = self.destination.with_name(f"{self.destination.name}.partial-{key}")
        self._old = self.partial.with_name(f"{self.partial.name}.old")  # what was to be overwritten
        self.scratch: list[str] = []  # entries of the partial directory that are not part of the model
        self._overwrite = overwrite
        self._file: BinaryIO | None = None
        self._journal: BinaryIO | None = None
        self._layout: Layout | None = None
        self._done: dict[str, dict[str, Any]] = {}

    def __enter__(self) -> DirectoryWriter:
        """Creates or takes up the partial directory.

        Raises:
            ParameterError: the destination exists and is not to be overwritten.
            StorageError: the place cannot be written, or another process is writing it.
        """
        self.check_destination()
        with storage_errors(self._named, beside=True):
            self.destination.parent.mkdir(parents=True, exist_ok=True)
            self.partial.mkdir(exist_ok=True)
        self._journal = open_locked(self.partial / JOURNAL)
        self._done = self._read_journal()
        with storage_errors(self._old):
            if self._is_filled():  # else it is all that there is of the old model
                shutil.rmtree(self._old, ignore_errors=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, _FINAL) or (error is not None and not self._done):
            # Nothing to resume, or it would end alike. Locked still: nobody else can be at work here.
            shutil.rmtree(self.partial, ignore_errors=True)
        for file in (self._file, self._journal):
            if file is not None:
                # On a full disk what could not be written is tried once more, and fails once more. That was
                # told already; what was to be kept is synced before. The system's file is closed even so.
                with contextlib.suppress(OSError):
                    file.close()

    def discard(self) -> None:
        """Throws the unfinished work away: nothing is to come of it."""
        # Locked still, so that nobody else can be at work here.
        shutil.rmtree(self.partial, ignore_errors=True)

    def check_destination(self) -> None:
        """Refuses a destination that exists, unless it is an empty directory or may be overwritten."""
        with storage_errors(self._given):
            if not os.path.lexists(self.destination):
                return
            if not self.destination.is_dir():
                raise ParameterError(f"{self._given}: exists and is not a directory")
            if any(self.destination.iterdir()) and not self._overwrite:
                raise ParameterError(
                    f"{self._given}: exists already; choose another place, or overwrite it (--overwrite)"
                )

    def note(self, name: str) -> dict[str, Any] | None:
        """What :meth:`record` wrote under this name, in this run or an earlier one."""
        return self._done.get(name)

    def record(self, name: str, facts: Mapping[str, Any]) -> None:
        """Adds a line to the journal."""
        assert self._journal is not None
        line = json.dumps({"name": name, **facts}) + "\n"
        with storage_errors(self.partial / JOURNAL):
            self._journal.write(line.encode())
            self._journal.flush()
        self._done[name] = dict(facts)

    def begin_weights(self, layout: Layout) -> None:
        """Creates the file of weights at its full size, or takes up the one that is there.

        Raises:
            StorageError: the disk has no room for it.
        """
        path = self.partial / SINGLE
        self._layout = layout
        with storage_errors(path):
            old = path.stat().st_blocks * 512 if path.exists() and hasattr(os.stat_result, "st_blocks") else 0
            free = shutil.disk_usage(self.partial).free + old
            if free < layout.size + _SPARE_BYTES:
                raise StorageError(
                    f"{path}: needs {layout.size + _SPARE_BYTES} bytes, the disk has {free} free"
                )
            self._file = path.open("r+b" if path.exists() else "w+b")
            same = self._file.read(len(layout.header)) == layout.header
            if not same:
                self._file.truncate(0)
                self._file.seek(0)
                self._file.write(layout.header)
            self._file.flush()
            _reserve(self._file, layout.size)

    def write(self, part: str, offset: int, data: bytes | memoryview) -> None:
        """Writes bytes of a part, ``offset`` bytes from its start."""
        assert self._file is not None and self._layout is not None
        with storage_errors(self.partial / SINGLE):
            self._file.seek(self._layout.offsets[part] + offset)
            self._file.write(data)

    def read(self, part: str, size: int) -> bytes:
        """The first ``size`` bytes of a part, as they are in the file now."""
        assert self._file is not None and self._layout is not None
        with storage_errors(self.partial / SINGLE):
            self._file.seek(self._layout.offsets[part])
            return self._file.read(size)

    def flush(self) -> None:
        """Hands everything written to the operating system, so that a kill of this process cannot lose it."""
        assert self._file is not None
        with storage_errors(self.partial / SINGLE):
            self._file.flush()

    def checksums(self, parts: Mapping[str, int]) -> dict[str, int]:
        """CRC-32 of each part (name to number of bytes), as it is in the file now."""
        assert self._file is not None and self._layout is not None
        sums = {}
        with storage_errors(self.partial / SINGLE):
            for name, size in parts.items():
                self._file.seek(self._layout.offsets[name])
                value = 0
                while size > 0 and (data := self._file.read(min(size, _CHUNK))):
                    value = zlib.crc32(data, value)
                    size -= len(data)
                sums[name] = value
        return sums

    def finish(self, texts: Mapping[str, str], copies: Sequence[Path]) -> None:
        """Adds small files, syncs all to disk, and gives the directory its name."""
        assert self._file is not None and self._journal is not None
        with storage_errors(self.partial):
            _sync(self._file)
            forget_pages(self._file.fileno())
            for name, text in texts.items():
                with (self.partial / name).open("w", encoding="utf-8") as file:
                    file.write(text)
                    _sync(file)
            for source in copies:
                target = self.partial / source.name
                shutil.copyfile(source, target)
                with target.open("rb+") as copy:
                    _sync(copy)
            self._file.close()
            self.check_destination()
            # Before the rename, behind which nobody would look for it. Whoever is killed from here on makes
            # again what is missing, and it comes out the same.
            for name in self.scratch:
                _remove(self.partial / name)
            _sync_directory(self.partial)
            self._rename()
            _sync_directory(self.destination)

    def _rename(self) -> None:
        if self._is_filled():
            # Two steps: a kill between them leaves the old model under another name until the work is resumed
            # and the new one is there.
            shutil.rmtree(self._old, ignore_errors=True)
            self.destination.rename(self._old)
        elif self.destination.is_dir():
            self.destination.rmdir()
        self.partial.rename(self.destination)
        # Last, since with it all is resumed but for the scratch; a kill in between leaves it, to no harm.
        (self.destination / JOURNAL).unlink(missing_ok=True)
        _sync_directory(self.destination.parent)
        if self._old.exists():
            shutil.rmtree(self._old)

    def _is_filled(self) -> bool:
        """Whether the destination is a directory with something in it."""
        return self.destination.is_dir() and any(self.destination.iterdir())

    def _read_journal(self) -> dict[str, dict[str, Any]]:
        assert self._journal is not None
        done: dict[str, dict[str, Any]] = {}
        with storage_errors(self.partial / JOURNAL):
            self._journal.seek(0)
            good = 0
            for line in self._journal:
                try:
                    facts = json.loads(line)
                    name = facts.pop("name")
                except (ValueError, AttributeError, KeyError):
                    break
                if not line.endswith(b"\n"):
                    break
                done[name] = facts
                good += len(line)
            # A line cut short by a kill would garble the next one.
            self._journal.truncate(good)
        return done


def _remove(path: Path) -> None:
    """Deletes a file or a directory, if it is there; under its name a kill leaves all of it or nothing."""
    removed = path.with_name(f"{path.name}.removed")
    if removed.exists():  # left by a kill
        shutil.rmtree(removed)
    if path.is_dir():
        path.rename(removed)
        shutil.rmtree(removed)
    else:
        path.unlink(missing_ok=True)


def _reserve(file: BinaryIO, size: int) -> None:
    """Gives the file its size, and its blocks where the system can, so that a full disk shows now."""
    file.truncate(size)
    if sys.platform == "linux":
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                raise


def _sync(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_directory(path: Path) -> None:
    if sys.platform == "win32":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
