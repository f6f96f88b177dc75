"""What a watching scheduler does when the storage is away; nothing here starts Ray."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from cluster.progress import Progress
from cluster.storage import StorageError
from pipelines.evaluation import sources
from pipelines.evaluation.claims import Claims
from pipelines.evaluation.recipe import EvaluateRecipe, WatchRecipe
from pipelines.evaluation.sources import Appearing
from pipelines.evaluation.units import finished_ids
from qmop.vtcbench.suite import SuiteManifest, write_suite
from tests.pipelines.evaluation.test_discovery import export


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(sources, "time", found)
    return found


@pytest.fixture
def suite(tmp_path: Path) -> SuiteManifest:
    return write_suite(tmp_path / "suite", 0, 20, 20)


def appearing(folder: Path, suite: SuiteManifest, claims: Claims, said: io.StringIO) -> Appearing:
    recipe = EvaluateRecipe(
        checkpoints=[str(folder / "run")], output=str(folder / "store"), watch=True, watching=WatchRecipe(poll_s=1)
    )
    return Appearing(recipe, suite, claims, Progress(stream=said), lambda: False)


def test_a_storage_that_is_away_is_looked_at_again(
    tmp_path: Path, suite: SuiteManifest, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(tmp_path / "run", 1)
    said, claims = io.StringIO(), Claims(str(tmp_path / "store"), 30)
    source, look = appearing(tmp_path, suite, claims, said), sources.discover

    def gone(*_: object, **__: object) -> None:
        raise StorageError("s3://bucket cannot be reached")

    monkeypatch.setattr(sources, "discover", gone)
    for _ in range(3):
        clock.now += 2
        assert source.more(2) == []
    assert said.getvalue().count("looking again in 1 s: s3://bucket cannot be reached") == 1
    monkeypatch.setattr(sources, "discover", look)
    clock.now += 2
    assert len(source.more(2)) == 1


def test_a_storage_that_goes_away_behind_a_claim_gives_it_back(
    tmp_path: Path, suite: SuiteManifest, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(tmp_path / "run", 1)
    claims = Claims(str(tmp_path / "store"), 30)
    source, calls = appearing(tmp_path, suite, claims, io.StringIO()), iter([False, True, False, False])

    def sometimes(store: str) -> set[str]:
        if next(calls):
            raise StorageError("away")
        return finished_ids(store)

    monkeypatch.setattr(sources, "finished_ids", sometimes)
    assert source.more(2) == []
    [unit] = source.units()
    assert not claims.holds(unit.exam)
    clock.now += 2
    assert [task.unit.id for task in source.more(2)] == [unit.id]
    assert claims.holds(unit.exam)


def test_what_failed_rests_and_is_tried_again(tmp_path: Path, suite: SuiteManifest, clock: Clock) -> None:
    export(tmp_path / "run", 1)
    source = appearing(tmp_path, suite, Claims(str(tmp_path / "store"), 30), io.StringIO())
    [task] = source.more(2)
    for rest in (60, 120, 240):
        source.settled(task.unit, "it was the storage")
        clock.now += rest - 1
        assert source.more(2) == []
        clock.now += 2
        assert [again.unit.id for again in source.more(2)] == [task.unit.id]


def test_what_never_works_keeps_nobody_waiting(tmp_path: Path, suite: SuiteManifest, clock: Clock) -> None:
    export(tmp_path / "run", 1)
    recipe = EvaluateRecipe(
        checkpoints=[str(tmp_path / "run")],
        output=str(tmp_path / "store"),
        watch=True,
        watching=WatchRecipe(poll_s=1, idle_s=7200),
    )
    source = Appearing(recipe, suite, Claims(recipe.output, 30), Progress(stream=io.StringIO()), lambda: False)
    tries = 0
    while not source.over():
        clock.now += 60
        for task in source.more(2):
            tries += 1
            source.settled(task.unit, "it never works")
        assert clock.now < 1000 + 5 * 3600
    assert 2 < tries < 12


def test_nobody_is_over_while_another_works_however_seldom_it_looks(
    tmp_path: Path, suite: SuiteManifest, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(tmp_path / "run", 1)
    store = str(tmp_path / "store")
    recipe = EvaluateRecipe(
        checkpoints=[str(tmp_path / "run")], output=store, watch=True, watching=WatchRecipe(poll_s=5, idle_s=1)
    )

    def watching() -> Appearing:
        return Appearing(recipe, suite, Claims(store, 30), Progress(stream=io.StringIO()), lambda: False)

    other, mine = watching(), watching()
    clock.now += 1
    [task] = other.more(1)
    done: set[str] = set()
    monkeypatch.setattr(sources, "finished_ids", lambda _: done)
    for _ in range(30):
        clock.now += 1
        assert mine.more(1) == []
        assert not mine.over()
    done.add(task.unit.id)
    other.settled(task.unit, None)
    looked = clock.now
    while not mine.over():
        clock.now += 1
        mine.more(1)
        assert clock.now <= looked + 5


def test_a_storage_that_is_away_does_not_look_like_nothing_to_do(
    tmp_path: Path, suite: SuiteManifest, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = EvaluateRecipe(
        checkpoints=[str(tmp_path)],
        output=str(tmp_path / "store"),
        watch=True,
        watching=WatchRecipe(poll_s=1, idle_s=5),
    )
    source = Appearing(recipe, suite, Claims(recipe.output, 30), Progress(stream=io.StringIO()), lambda: False)

    def gone(*_: object, **__: object) -> None:
        raise StorageError("s3://bucket cannot be reached")

    with monkeypatch.context() as away:
        away.setattr(sources, "discover", gone)
        for _ in range(20):
            clock.now += 2
            assert source.more(2) == []
            assert not source.over()
    clock.now += 2
    source.more(2)
    assert source.over()
