"""Machines that go: with notice, and without."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import ray.train

from cluster.progress import Progress
from pipelines.corpus.audit import audit
from pipelines.training import preemption
from pipelines.training.preemption import Notice
from pipelines.training.recipe import StageRecipe
from pipelines.training.trainer import train
from tests.fixtures.several_nodes import Node, Nodes, announce_loss, several_nodes
from tests.pipelines.training.grounds import ground_in, tuning
from tests.pipelines.training.killing import Moment, curve, meanwhile, notes, workers

STEPS, EVERY = 150, 10


def test_one_clock_says_when_to_look_and_a_notice_is_news_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, answers = [100.0], iter([None, "machine 3 goes", "machine 3 goes"])
    monkeypatch.setattr(preemption.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(ray.train, "get_preemption_info", lambda: next(answers))
    notice = Notice()
    assert notice.due(rank=0) == 0.0
    clock[0] += preemption.LOOK_S
    assert (notice.due(rank=0), notice.due(rank=1)) == (1.0, 0.0)
    assert notice.look() is False
    assert notice.due(rank=0) == 0.0
    assert [notice.look(), notice.look()] == [True, False]


@pytest.fixture
def cluster() -> Iterator[Nodes]:
    """A first node that no training process fits on, and four others of which each takes one."""
    with several_nodes(first_cpus=1, cpus=2, count=4) as nodes:
        yield nodes


@pytest.fixture
def ground(cluster: Nodes, tmp_path: Path) -> Iterator[Path]:
    """A corpus and a base, and a session on that cluster."""
    assert cluster.address
    with ground_in(tmp_path, samples_per_shard=20) as folder:
        yield folder


@dataclass
class Losses:
    """Two machines that go, one after the other: the first with notice, the second without."""

    cluster: Nodes
    run: Path
    first: Node | None = None
    before: tuple[str, ...] = ()

    def acts(self) -> tuple[tuple[Moment, Callable[[], None]], ...]:
        """What happens, and when."""
        return (self.states, self.announce), (self.saved_at_once, self.lose_first), (self.went_on, self.lose_second)

    def states(self) -> tuple[str, ...]:
        """Visible states."""
        return tuple(sorted(card.parent.name for card in (self.run / "states").glob("*/state.json")))

    def a_node_that_trains(self) -> Node:
        """Any of them."""
        pids = {process.pid for process in workers()}
        return next(node for node in self.cluster.others if any(node.holds(pid) for pid in pids))

    def announce(self) -> None:
        """A cloud reclaims a machine in a minute."""
        self.first = self.a_node_that_trains()
        announce_loss(self.cluster, self.first, seconds=60)

    def saved_at_once(self) -> bool:
        """Whether there is a state between two intervals."""
        return any(int(name[-8:]) % EVERY for name in self.states())

    def lose_first(self) -> None:
        """It goes."""
        assert self.first is not None
        self.first.lose()
        self.before = self.states()

    def went_on(self) -> bool:
        """Whether a state has been saved since, by processes that are there."""
        return bool(set(self.states()) - set(self.before)) and bool(workers())

    def lose_second(self) -> None:
        """Another goes."""
        self.a_node_that_trains().lose()


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_machines_that_go_with_and_without_notice_change_nothing(cluster: Nodes, ground: Path) -> None:
    """Two machines of four are left.

    Both losses may count as failures: Ray often hears of the connections that broke before it hears of the machine.
    """
    run = ground / "run"
    tune = StageRecipe(steps=STEPS, projector_rate=1e-3, language_rate=1e-3)
    room: dict[str, object] = {"workers": 2, "cpus_per_worker": 2.0, "micro_batch": 6}
    recipe = tuning(ground, "run", tune=tune, save_every=EVERY, max_failures=2, **room)
    losses = Losses(cluster, run)
    with meanwhile(*losses.acts()):
        train(recipe, Progress(stream=io.StringIO()))
    resumed = [int(note["name"][-8:]) for note in notes(run, "resumed")]
    assert [step % EVERY == 0 for step in resumed] == [False, True]
    assert sorted(curve(run, tolerance=1e-4)) == list(range(1, STEPS + 1))
    proof = audit(str(run / "ledger" / "tune"))
    assert (proof.steps, proof.samples, proof.attempts) == (STEPS, 12 * STEPS, 3)
