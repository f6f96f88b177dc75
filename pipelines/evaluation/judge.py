"""The process that answers: it loads a checkpoint once and keeps it while units of it keep coming."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import ray
import torch

from cluster.storage import exists, join, read_bytes
from pipelines.evaluation.answering import Told, answered, batches_of
from pipelines.evaluation.recipe import TowerRecipe
from pipelines.evaluation.shared_tower import SharedTower
from pipelines.evaluation.suspicion import Suspicion, WorkerError, owning_up
from pipelines.evaluation.tower_cache import TowerCache
from pipelines.evaluation.units import Unit, commit, finished, was_by
from pipelines.training.exports import CARD, local_copy, read_card
from qmop.loading import load
from qmop.views import View, view_of
from qmop.vtcbench.records import Record, judge
from qmop.vtcbench.rendered import RenderedItem
from qmop.vtcbench.suite import decode_shard

_HELD_BYTES = 256 * 1024 * 1024
"""Shards that a process keeps for its next checkpoint."""


class Done(NamedTuple):
    """What became of a unit.

    Attributes:
        items: of its shard.
        poisoned: of them could not be answered and count as wrong.
        looked: pictures that went through the vision tower where it is shared.
        ours: whether the records that stand are these, or another's who was first.
        worn: whether the process can answer nothing more: its last item cost it its device.
    """

    items: int
    poisoned: int
    looked: int = 0
    ours: bool = True
    worn: bool = False


class Loaded(NamedTuple):
    """A checkpoint in memory."""

    digest: str
    model: Any
    processor: Any
    tower: SharedTower | None


@ray.remote(max_restarts=2, max_task_retries=2)
class Judge:
    """Answers and commits units.

    Args:
        store: results store.
        suite: folder of the suite's shards.
        batch: questions answered at once.
        threads: of torch.
        tower: how passes of the vision tower are shared; they are not when absent.
        by: name of the evaluation, written down with the records.
    """

    def __init__(  # noqa: PLR0917 - an actor's arguments travel by place
        self, store: str, suite: str, batch: int, threads: int, tower: TowerRecipe | None = None, by: str = ""
    ) -> None:
        torch.set_num_threads(threads)
        self.store, self.suite, self.batch, self.by = store, suite, batch, by
        self.cache = TowerCache(tower.home, tower.cache_mb * 2**20) if tower is not None and tower.shared else None
        self.loaded: Loaded | None = None
        self.items: dict[str, list[RenderedItem]] = {}

    def run(self, unit: Unit, fence: int = 0, views: Sequence[View] = (), doubted: Sequence[str] = ()) -> Done:
        """Answer a unit and commit it; one that is there already is left alone.

        Args:
            unit: to do.
            fence: number of the scheduler's claim, written down with the records.
            views: what the methods of all checkpoints at hand read, for one pass of the tower.
            doubted: keys of items that another process failed at.

        Raises:
            WorkerError: if no item at all could be answered, or this process is not fit to answer any more.
            ValueError: if checkpoint or shard are damaged.
        """
        if finished(unit, self.store):  # this process was ended between the commit and its answer
            return Done(unit.shard.count, 0, ours=was_by(unit, self.store, self.by))
        with owning_up():
            loaded, items = self._loaded(unit, views), self._shard(unit)
            before = 0 if loaded.tower is None else loaded.tower.passed
            suspicion = Suspicion(doubted)
            told = self._told(loaded, items, unit.generation.max_new_tokens, suspicion, doubted)
        poisoned = {key: one.why for key, one in told.items() if one.answer is None}
        if len(poisoned) == len(items):
            raise WorkerError(
                f"none of {len(items)} items could be answered ({next(iter(poisoned.values()))}); nothing is recorded"
            )
        records = [_record(unit, rendered, told[rendered.item.key]) for rendered in items]
        cut = sum(one.cut for one in told.values())
        ours = commit(unit, self.store, records, poisoned=poisoned, cut=cut, fence=fence, by=self.by)
        ours = ours or was_by(unit, self.store, self.by)
        looked = 0 if loaded.tower is None else loaded.tower.passed - before
        return Done(len(items), len(poisoned), looked, ours, suspicion.worn)

    def _told(
        self,
        loaded: Loaded,
        items: Sequence[RenderedItem],
        max_new_tokens: int,
        suspicion: Suspicion,
        doubted: Sequence[str],
    ) -> dict[str, Told]:
        """What came of every item, by its key; those in doubt go alone and last, and not through the shared pass."""
        by_key = {rendered.item.key: rendered for rendered in items}
        apart = [[by_key.pop(key)] for key in doubted if key in by_key]
        batches = batches_of(loaded.processor, list(by_key.values()), self.batch)
        if loaded.tower is not None:
            loaded.tower.prepare(batches, suspicion)
        told: dict[str, Told] = {}
        for batch in [*batches, *apart]:
            answers = answered(loaded.model, loaded.processor, batch, max_new_tokens, suspicion)
            told |= {rendered.item.key: one for rendered, one in zip(batch, answers, strict=True)}
        return told

    def _shard(self, unit: Unit) -> list[RenderedItem]:
        url = unit.shard.url
        if url not in self.items:
            while self.items and self._held() + unit.shard.size > _HELD_BYTES:
                del self.items[next(iter(self.items))]
            self.items[url] = decode_shard(read_bytes(join(self.suite, url)), unit.shard)
        return self.items[url]

    def _held(self) -> int:
        return sum(len(rendered.image) for items in self.items.values() for rendered in items)

    def _loaded(self, unit: Unit, views: Sequence[View] = ()) -> Loaded:
        candidate = unit.candidate
        if self.loaded is None or self.loaded.digest != candidate.digest:
            self.loaded = None  # let go of the old model before the new one is read
            carded = exists(join(candidate.uri, CARD))
            with local_copy(candidate.uri) as folder:
                model, processor = load(folder)
                if carded and read_card(candidate.uri).digest != candidate.digest:
                    raise ValueError(f"{candidate.uri} was exported anew while it was to be judged: judge it again")
                model.to("cuda" if ray.is_initialized() and ray.get_gpu_ids() else "cpu")
            tower = None
            if self.cache is not None and processor.max_tiles is None:  # tiles are not remembered
                tower = SharedTower(model, processor, view_of(model.config), views, self.cache)
            self.loaded = Loaded(candidate.digest, model, processor, tower)
        return self.loaded


def _record(unit: Unit, rendered: RenderedItem, told: Told) -> Record:
    return judge(
        rendered.item,
        "" if told.answer is None else told.answer.text,
        checkpoint=unit.candidate.digest,
        label=unit.candidate.label,
        method=unit.candidate.method,
        budget=unit.candidate.budget,
        visual_tokens=0 if told.answer is None else told.answer.visual_tokens,
        suite_digest=unit.suite_digest,
        shard=unit.shard.url,
        branch_weights=None if told.answer is None else told.answer.branch_weights,
        seconds=told.seconds,
    )
