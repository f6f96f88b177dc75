"""A stand-in engine that does as it is told, and pictures as clients send them."""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable, Iterator, Sequence
from io import BytesIO
from typing import Any

import pytest
from PIL import Image

from pipelines.serving.contract import Completion, Job, Prompt, PromptError, VisualUsage
from pipelines.serving.service import ChatService

WEIGHTS = {"resampler": 0.25, "window_pool": 0.0, "prune": 0.75}
QUESTION = Prompt(messages=[{"role": "user", "content": [{"type": "text", "text": "hi"}]}], images=[], question="hi")


class ScriptedEngine:
    """Emits its pieces, one each time that `gate` lets it pass."""

    def __init__(self) -> None:
        self.batch_limit = 1
        self.pieces: list[str] = ["a red", " circle"]
        self.fails_at: int | None = None
        self.error: Exception = RuntimeError("secret inside")
        self.gate: threading.Semaphore | None = None
        self.checked: list[str] = []
        self.batches: list[list[Job]] = []
        self.ended: list[Completion] = []
        self.progressed = threading.Semaphore(0)

    def check(self, messages: Sequence[Any]) -> None:
        self.checked.append(threading.current_thread().name)
        if any("too long" in part.get("text", "") for turn in messages for part in turn["content"]):
            raise PromptError("The conversation is too long: shorten it.")

    def run(self, jobs: Sequence[Job]) -> None:
        self.batches.append(list(jobs))
        for job in jobs:
            self._answer(job)

    def _answer(self, job: Job) -> None:
        for index, piece in enumerate(self.pieces):
            self.progressed.release()
            if self.gate is not None:
                assert self.gate.acquire(timeout=20)
            if job.cancelled.is_set():
                return self._end(job, index, "cancelled")
            if self.fails_at == index:
                raise self.error
            job.emit(piece)
        return self._end(job, len(self.pieces), "stop")

    def _end(self, job: Job, count: int, reason: Any) -> None:
        images = len(job.prompt.images)
        visual = VisualUsage(
            method="qmop",
            visual_tokens=16 * images,
            visual_tokens_original=144 * images,
            branch_weights=WEIGHTS if images else None,
        )
        end = Completion(finish_reason=reason, prompt_tokens=20, completion_tokens=count, visual=visual)
        self.ended.append(end)
        job.done(end)

    @property
    def jobs(self) -> list[Job]:
        return [job for batch in self.batches for job in batch]


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine()


@pytest.fixture
def service(engine: ScriptedEngine) -> Iterator[ChatService]:
    """Warm, with room for one answer and two waiting."""
    service = ChatService(engine, max_queued=2)
    service.warm_up(QUESTION, timeout_s=20)
    engine.batches.clear()
    engine.ended.clear()
    while engine.progressed.acquire(blocking=False):
        pass
    yield service
    service.close()


@pytest.fixture(scope="session")
def data_url() -> Callable[..., str]:
    return as_data_url


def as_data_url(image: Image.Image | bytes, kind: str = "png", declared: str | None = None, **options: Any) -> str:
    if isinstance(image, Image.Image):
        file = BytesIO()
        image.save(file, kind, **options)
        image = file.getvalue()
    return f"data:image/{declared or kind};base64,{base64.b64encode(image).decode()}"
