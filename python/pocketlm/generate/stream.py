"""A text as it is generated."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import AsyncIterator, Callable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, NoReturn

from pocketlm.generate.job import Generation
from pocketlm.generate.result import Chunk, Completion
from pocketlm.generate.scheduler import Scheduler

if TYPE_CHECKING:
    import asyncio


class Stream(Iterator[Chunk], AsyncIterator[Chunk]):
    """Yields :class:`~pocketlm.generate.result.Chunk` objects; for ``for`` and for ``async for``.

    The work is done while somebody waits for a chunk. The last chunk has a ``finish_reason``. Leaving the
    ``with`` block, :meth:`close` or losing the object ends the work.
    """

    def __init__(
        self, scheduler: Scheduler, job: Generation, on_end: Callable[[Completion], None] | None = None
    ) -> None:
        self._scheduler, self._job, self._on_end = scheduler, job, on_end
        self._closed = False

    @property
    def text(self) -> str:
        """The text so far."""
        return self._job.text

    @property
    def finished(self) -> bool:
        """Whether all of the text is there."""
        return self._job.finished

    @property
    def completion(self) -> Completion | None:
        """The whole result, once the text is finished."""
        return self._job.completion() if self._job.finished and self._job.error is None else None

    def result(self) -> Completion:
        """Waits for the end and returns the whole.

        Raises:
            PocketlmError: generation failed.
        """
        self._job.patient = True
        self._scheduler.wait(lambda: self._job.finished)
        self._settle()
        if self._job.error is not None:
            raise self._job.error
        return self._job.completion()

    def cancel(self) -> None:
        """Ends the work; also from another thread, and while the prompt is being read. The stream then ends
        with a chunk whose ``finish_reason`` is ``"cancelled"``."""
        self._scheduler.cancel(self._job)

    def close(self) -> None:
        """Ends the work and the stream."""
        self._closed = True
        if not self._job.finished:
            self.cancel()
        self._settle()

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> Chunk:
        if self._closed:
            raise StopIteration
        self._scheduler.wait(self._job.has_news)
        chunk = self._take()
        if chunk is None:
            raise StopIteration
        return chunk

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> Chunk:
        if self._closed:
            raise StopAsyncIteration
        # Imported here: most programs have no event loop, and the import takes as long as opening a model.
        import asyncio

        loop = asyncio.get_running_loop()
        while True:
            news: asyncio.Future[None] = loop.create_future()
            if self._scheduler.listen(self._job, functools.partial(_wake, loop, news)):
                break
            try:
                await news  # another task may take what there is first
            except asyncio.CancelledError:
                self.close()
                raise
        chunk = self._take()
        if chunk is None:
            raise StopAsyncIteration
        return chunk

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Stream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        # Whichever copy is lost first would end the work of both.
        raise TypeError("a stream cannot be copied or pickled")

    def __del__(self) -> None:
        # No lock here: this may run anywhere. The scheduler looks at the mark before its next step.
        job = getattr(self, "_job", None)
        if job is not None and not job.finished:
            job.cancelled = True

    def _take(self) -> Chunk | None:
        if self._job.error is not None:
            self._settle()
            raise self._job.error
        chunk = self._scheduler.take(self._job)
        if chunk is not None and chunk.finish_reason is not None:
            self._settle()
        return chunk

    def _settle(self) -> None:
        callback, self._on_end = self._on_end, None
        if callback is not None and self._job.finished and self._job.error is None:
            callback(self._job.completion())


def _wake(loop: asyncio.AbstractEventLoop, news: asyncio.Future[None]) -> None:
    def resolve() -> None:
        if not news.done():
            news.set_result(None)

    # The loop may have ended while the text was being made, or end right now.
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(resolve)
