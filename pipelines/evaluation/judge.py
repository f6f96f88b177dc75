"""The process that answers: it loads a checkpoint once and keeps it while units of it keep coming."""

from __future__ import annotations

import time
from typing import Any

import ray
import torch

from cluster.storage import exists, join, read_bytes
from pipelines.corpus.images import decode_image
from pipelines.evaluation.units import Unit, commit
from pipelines.training.exports import CARD, local_copy, read_card
from qmop.answering import Answer, answer
from qmop.loading import load
from qmop.vtcbench.records import Record, judge
from qmop.vtcbench.rendered import RenderedItem
from qmop.vtcbench.suite import decode_shard


@ray.remote(max_restarts=2, max_task_retries=2)
class Judge:
    """Answers and commits units.

    Args:
        store: results store.
        suite: folder of the suite's shards.
        batch: questions answered at once.
        threads: of torch.
    """

    def __init__(self, store: str, suite: str, batch: int, threads: int) -> None:
        torch.set_num_threads(threads)
        self.store, self.suite, self.batch = store, suite, batch
        self.loaded: tuple[str, Any, Any] | None = None
        self.items: dict[str, list[RenderedItem]] = {}

    def run(self, unit: Unit) -> tuple[int, int]:
        """Answer a unit and commit it.

        Returns:
            Number of items, and of those that could not be answered (counted wrong).
        """
        model, processor = self._model(unit)
        if unit.shard.url not in self.items:
            self.items[unit.shard.url] = decode_shard(read_bytes(join(self.suite, unit.shard.url)), unit.shard)
        items = sorted(self.items[unit.shard.url], key=lambda rendered: len(rendered.item.question))
        records, failed = [], 0
        for first in range(0, len(items), self.batch):
            part = items[first : first + self.batch]
            started = time.monotonic()
            answers = _patiently(model, processor, part, unit.generation.max_new_tokens)
            seconds = (time.monotonic() - started) / len(part)
            failed += sum(told is None for told in answers)
            records += [_record(unit, r, told, seconds) for r, told in zip(part, answers, strict=True)]
        if failed == len(items):
            raise RuntimeError(f"none of {failed} items could be answered; nothing is recorded")
        order = {rendered.item.key: place for place, rendered in enumerate(self.items[unit.shard.url])}
        commit(unit, self.store, sorted(records, key=lambda record: order[record.key]))
        return len(records), failed

    def _model(self, unit: Unit) -> tuple[Any, Any]:
        candidate = unit.candidate
        if self.loaded is None or self.loaded[0] != candidate.digest:
            self.loaded = None  # let go of the old model before the new one is read
            carded = exists(join(candidate.uri, CARD))
            with local_copy(candidate.uri) as folder:
                model, processor = load(folder)
                if carded and read_card(candidate.uri).digest != candidate.digest:
                    raise ValueError(f"{candidate.uri} was exported anew while it was to be judged: judge it again")
                model.to("cuda" if ray.get_gpu_ids() else "cpu")
            self.loaded = (candidate.digest, model, processor)
        return self.loaded[1], self.loaded[2]


def _patiently(model: Any, processor: Any, items: list[RenderedItem], max_new_tokens: int) -> list[Answer | None]:
    """Answers of a batch; if the batch fails, each item alone, so that one bad item costs only itself."""
    try:
        pictures = [decode_image(rendered.image) for rendered in items]
        questions = [rendered.item.question for rendered in items]
        return list(answer(model, processor, pictures, questions, max_new_tokens=max_new_tokens))
    except (ValueError, RuntimeError, OSError):
        if len(items) == 1:
            return [None]
        return [told for item in items for told in _patiently(model, processor, [item], max_new_tokens)]


def _record(unit: Unit, rendered: RenderedItem, told: Answer | None, seconds: float) -> Record:
    return judge(
        rendered.item,
        "" if told is None else told.text,
        checkpoint=unit.candidate.digest,
        label=unit.candidate.label,
        method=unit.candidate.method,
        budget=unit.candidate.budget,
        visual_tokens=0 if told is None else told.visual_tokens,
        suite_digest=unit.suite_digest,
        shard=unit.shard.url,
        branch_weights=None if told is None else told.branch_weights,
        seconds=seconds,
    )
