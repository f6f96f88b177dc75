"""An answer on its way from the engine's thread to the event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator

from pipelines.serving.contract import Completion


class Ticket:
    """One answer on its way: iterate for its pieces of text, then read `completion`."""

    def __init__(self, cancelled: threading.Event) -> None:
        self._cancelled = cancelled
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[str | Completion | Exception] = asyncio.Queue()
        self.completion: Completion | None = None

    def post(self, event: str | Completion | Exception) -> None:
        """Hand over an event from the engine's thread."""
        # RuntimeError: the loop has been closed, so nobody waits for this answer any more.
        try:
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)
        except RuntimeError:
            self.cancel()

    def cancel(self) -> None:
        """Let the engine stop at its next token; harmless after the end."""
        self._cancelled.set()

    async def pieces(self) -> AsyncIterator[str]:
        """The answer's text, piece by piece.

        Raises:
            ApiError: what refused or failed the job.
        """
        while not isinstance(event := await self._events.get(), Completion):
            if isinstance(event, Exception):
                raise event
            yield event
        self.completion = event
