"""Between HTTP and the engine: a bounded queue, one engine thread, and answers that come back as events.

The event loop never decodes a picture and never runs the model. What waits is small: the engine's
thread decodes a conversation's pictures when its turn has come, so that a full queue holds files, not pixels. Every
request is counted once at the door and once at its end, so that the sum in `Counts` always holds.
"""

from __future__ import annotations

import asyncio
import logging
import math
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from pipelines.serving.contract import ChatEngine, Completion, Job, Prompt, PromptError, Sampling
from pipelines.serving.counts import Counts
from pipelines.serving.errors import ApiError, bad_request, overloaded, unavailable
from pipelines.serving.pulse import Pulse
from pipelines.serving.ticket import Ticket

_LOG = logging.getLogger(__name__)
_Result = TypeVar("_Result")
_WARM_UP_S = 120.0
_OURS = 500


class Abandoned(Exception):  # noqa: N818 - nothing went wrong: the client left
    """Ends a request whose client left before the engine came to it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Waiting:
    """A job whose prompt is made when its turn comes; the other fields are those of `Job`."""

    prepare: Callable[[], Prompt]
    sampling: Sampling
    emit: Callable[[str], None]
    done: Callable[[Completion | Exception], None]
    cancelled: threading.Event

    def job(self) -> Job:
        """The job itself.

        Raises:
            ApiError: what `prepare` refuses.
        """
        prompt = self.prepare()
        return Job(prompt=prompt, sampling=self.sampling, emit=self.emit, done=self.done, cancelled=self.cancelled)


class ChatService:
    """An engine with its queue.

    Args:
        engine: the loaded model.
        max_queued: requests that may wait while others are answered.
        stall_timeout_s: seconds that the engine may work without a new piece of text before it counts as stuck.
    """

    def __init__(self, engine: ChatEngine, *, max_queued: int, stall_timeout_s: float = math.inf) -> None:
        self._engine, self._pulse = engine, Pulse(stall_timeout_s)
        self.limit = max_queued + engine.batch_limit
        self._jobs: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
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

    @property
    def ailment(self) -> str | None:
        """Why this service should be replaced (its thread has ended, its engine only fails or is stuck), or None."""
        return self._pulse.ailment if self._worker.is_alive() else "The engine's thread has ended."

    def warm_up(self, prompt: Prompt, timeout_s: float = _WARM_UP_S) -> Completion:
        """Answer one real question before anybody is let in.

        Raises:
            Exception: whatever the engine raised, or TimeoutError after `timeout_s`.
        """
        ended: queue.SimpleQueue[Completion | Exception] = queue.SimpleQueue()
        sampling = Sampling(max_new_tokens=4)
        never = threading.Event()
        self._jobs.put(
            _Waiting(prepare=lambda: prompt, sampling=sampling, emit=_ignore, done=ended.put, cancelled=never)
        )
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
        except (asyncio.CancelledError, Abandoned):
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

    def check(self, messages: Sequence[Mapping[str, Any]]) -> None:
        """Refuse what the model cannot take, before it waits; may take a moment, so keep it off the event loop.

        Raises:
            ApiError: 400, in the engine's words.
        """
        try:
            self._engine.check(messages)
        except PromptError as error:
            raise _told(error) from error

    def submit(self, prepare: Callable[[], Prompt], sampling: Sampling) -> Ticket:
        """Queue a job; the last act inside `admission`, whose place it takes over.

        Args:
            prepare: makes the prompt, in the engine's thread when its turn has come; an `ApiError` refuses the job.
            sampling: how to draw the answer.
        """
        ticket = Ticket(cancelled := threading.Event())
        ended = threading.Event()

        def emit(text: str) -> None:
            self._pulse.beat()
            ticket.post(text)

        def done(outcome: Completion | Exception) -> None:
            if not ended.is_set():
                ended.set()
                self._pulse.ended(fate := _fate(outcome))
                self._leave(fate)
                ticket.post(outcome if isinstance(outcome, Completion) else _told(outcome))

        self._jobs.put(_Waiting(prepare=prepare, sampling=sampling, emit=emit, done=done, cancelled=cancelled))
        return ticket

    def counted(self) -> Counts:
        """The counts of one moment."""
        with self._lock:
            return replace(self.counts)

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
        while batch := self._next_batch():
            self._run(batch)

    def _next_batch(self) -> list[_Waiting]:
        """Wait for a job and take what else is there; empty when the service was closed."""
        batch = [self._jobs.get()]
        with suppress(queue.Empty):
            while batch[-1] is not None and len(batch) < self._engine.batch_limit:
                batch.append(self._jobs.get_nowait())
        jobs = [job for job in batch if job is not None]
        if 0 < len(jobs) < len(batch):
            self._jobs.put(None)  # answer these first, then stop
        return jobs

    def _run(self, batch: list[_Waiting]) -> None:
        wanted: list[Job] = []
        for waiting in batch:
            if waiting.cancelled.is_set():
                waiting.done(Abandoned())
                continue
            try:
                wanted.append(waiting.job())
            except Exception as error:  # noqa: BLE001 - a picture that cannot be decoded belongs to this job alone
                waiting.done(error)
        with self._pulse.at_work():
            try:
                self._engine.run(wanted)
            except Exception as error:  # noqa: BLE001 - the thread must outlive any batch; `done` tells and logs
                for job in wanted:
                    job.done(error)


def _fate(outcome: Completion | Exception) -> str:
    if isinstance(outcome, Abandoned):
        return "cancelled"
    if isinstance(outcome, PromptError) or (isinstance(outcome, ApiError) and outcome.status < _OURS):
        return "refused"
    if isinstance(outcome, Exception):
        return "failed"
    return "cancelled" if outcome.finish_reason == "cancelled" else "answered"


def _told(error: Exception) -> ApiError:
    """What the client hears of an engine's exception: a prompt's fault in full, ours without its inside."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, PromptError):
        return bad_request(str(error), code="invalid_prompt", param="messages")
    if not isinstance(error, Abandoned):
        _LOG.error("The engine failed on a request.", exc_info=error)
    return ApiError(
        _OURS, "The model failed on this request; the reason is in the service's log.", code="engine_failed"
    )


def _ignore(_text: str) -> None:
    """Take a piece that nobody reads."""
