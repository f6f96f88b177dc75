"""Between HTTP and the engine: a bounded queue, one engine thread, and answers that come back as events.

The event loop never decodes a picture and never runs the model. Every request is counted once at the door and once
at its end, so that received = answered + refused + cancelled + failed + in_flight, always.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TypeVar

from pipelines.serving.contract import ChatEngine, Completion, Job, Prompt, PromptError, Sampling
from pipelines.serving.errors import ApiError, bad_request, overloaded, unavailable

_LOG = logging.getLogger(__name__)
_Result = TypeVar("_Result")
_WARM_UP_S = 120.0
_OURS = 500


@dataclass(kw_only=True)
class Counts:
    """Requests by what became of them."""

    received: int = 0
    answered: int = 0
    refused: int = 0
    cancelled: int = 0
    failed: int = 0
    in_flight: int = 0


class Abandoned(Exception):  # noqa: N818 - nothing went wrong: the client left
    """Ends a job whose client left before the engine came to it."""


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


class ChatService:
    """An engine with its queue.

    Args:
        engine: the loaded model.
        max_queued: requests that may wait while others are answered.
    """

    def __init__(self, engine: ChatEngine, *, max_queued: int) -> None:
        self._engine = engine
        self.limit = max_queued + engine.batch_limit
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._intake = ThreadPoolExecutor(max_workers=2, thread_name_prefix="intake")
        self._worker = threading.Thread(target=self._work, name="engine", daemon=True)
        self._warm = False
        self.counts = Counts()
        self._worker.start()

    @property
    def ready(self) -> bool:
        """Whether the engine has answered its warm-up question and its thread lives."""
        return self._warm and self._worker.is_alive()

    def warm_up(self, prompt: Prompt, timeout_s: float = _WARM_UP_S) -> Completion:
        """Answer one real question before anybody is let in.

        Raises:
            Exception: whatever the engine raised, or TimeoutError after `timeout_s`.
        """
        ended: queue.SimpleQueue[Completion | Exception] = queue.SimpleQueue()
        sampling = Sampling(max_new_tokens=4)
        job = Job(prompt=prompt, sampling=sampling, emit=_ignore, done=ended.put, cancelled=threading.Event())
        self._jobs.put(job)
        try:
            outcome = ended.get(timeout=timeout_s)
        except queue.Empty:
            raise TimeoutError(f"The model did not answer its warm-up question within {timeout_s:.0f} s.") from None
        if isinstance(outcome, Exception):
            raise outcome
        self._warm = True
        return outcome

    @contextmanager
    def admission(self) -> Iterator[None]:
        """Let one request in: it holds a place from here to its end, through `submit` or an exception.

        Raises:
            ApiError: 429 when the queue is full, 503 when the engine is not there.
        """
        self._enter()
        try:
            yield
        except asyncio.CancelledError:
            self._leave("cancelled")
            raise
        except ApiError as error:
            self._leave("failed" if error.status == _OURS else "refused")
            raise
        except BaseException:
            self._leave("failed")
            raise

    async def offload(self, task: Callable[[], _Result]) -> _Result:
        """Run slow intake work in the intake threads."""
        return await asyncio.get_running_loop().run_in_executor(self._intake, task)

    def submit(self, prompt: Prompt, sampling: Sampling) -> Ticket:
        """Queue a job; the last act inside `admission`, whose place it takes over."""
        ticket = Ticket(cancelled := threading.Event())
        ended = threading.Event()

        def done(outcome: Completion | Exception) -> None:
            if not ended.is_set():
                ended.set()
                self._leave(_fate(outcome))
                ticket.post(outcome if isinstance(outcome, Completion) else _told(outcome))

        self._jobs.put(Job(prompt=prompt, sampling=sampling, emit=ticket.post, done=done, cancelled=cancelled))
        return ticket

    def close(self) -> None:
        """Stop the engine's thread after what is queued."""
        self._jobs.put(None)
        self._intake.shutdown(wait=False)

    def _enter(self) -> None:
        with self._lock:
            self.counts.received += 1
            if self.ready and self.counts.in_flight < self.limit:
                self.counts.in_flight += 1
                return
            self.counts.refused += 1
        raise overloaded(self.limit) if self.ready else unavailable("The model is not ready: try again in a moment.")

    def _leave(self, fate: str) -> None:
        with self._lock:
            self.counts.in_flight -= 1
            setattr(self.counts, fate, getattr(self.counts, fate) + 1)

    def _work(self) -> None:
        while jobs := self._next_batch():
            self._run(jobs)

    def _next_batch(self) -> list[Job]:
        """Wait for a job and take what else is there; empty when the service was closed."""
        batch = [self._jobs.get()]
        with suppress(queue.Empty):
            while batch[-1] is not None and len(batch) < self._engine.batch_limit:
                batch.append(self._jobs.get_nowait())
        jobs = [job for job in batch if job is not None]
        if 0 < len(jobs) < len(batch):
            self._jobs.put(None)  # answer these first, then stop
        return jobs

    def _run(self, jobs: list[Job]) -> None:
        wanted = []
        for job in jobs:
            if job.cancelled.is_set():
                job.done(Abandoned())
            else:
                wanted.append(job)
        try:
            self._engine.run(wanted)
        except Exception as error:  # noqa: BLE001 - the thread must outlive any batch; `done` tells and logs
            for job in wanted:
                job.done(error)


def _fate(outcome: Completion | Exception) -> str:
    if isinstance(outcome, Abandoned):
        return "cancelled"
    if isinstance(outcome, PromptError):
        return "refused"
    if isinstance(outcome, Exception):
        return "failed"
    return "cancelled" if outcome.finish_reason == "cancelled" else "answered"


def _told(error: Exception) -> ApiError:
    """What the client hears of an engine's exception: a prompt's fault in full, ours without its inside."""
    if isinstance(error, PromptError):
        return bad_request(str(error), code="invalid_prompt", param="messages")
    if not isinstance(error, Abandoned):
        _LOG.error("The engine failed on a request.", exc_info=error)
    return ApiError(
        _OURS, "The model failed on this request; the reason is in the service's log.", code="engine_failed"
    )


def _ignore(_text: str) -> None:
    """Take a piece that nobody reads."""
