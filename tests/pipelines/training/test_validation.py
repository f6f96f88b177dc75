import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.evaluation.alone import CancelledError
from pipelines.training.recipe import TrainRecipe
from pipelines.training.validation import Validation, outstanding
from qmop.vtcbench.records import Record
from tests.pipelines.training.judged import export_of, records, run_in, there

LONGEST_S = 20.0
Judge = Callable[[str], list[Record]]


class Exam:
    """A judge that answers what it is told to, and may be held up; it proves that it is asked one thing at a time."""

    def __init__(self, *answers: int | Exception) -> None:
        self.answers, self.asked = list(answers), list[str]()
        self.begun, self.go_on, self.free = threading.Event(), threading.Event(), threading.Lock()

    def __call__(self, uri: str) -> list[Record]:
        assert self.free.acquire(blocking=False), "two at once"
        try:
            self.asked.append(uri.rsplit("-", 1)[-1])
            self.begun.set()
            assert self.go_on.wait(LONGEST_S)
            answer = self.answers[len(self.asked) - 1]
            if isinstance(answer, Exception):
                raise answer
            return records(answer)
        finally:
            self.free.release()


def validation_of(recipe: TrainRecipe, judge: Judge) -> tuple[Validation, list[dict[str, Any]]]:
    told: list[dict[str, Any]] = []
    return Validation(recipe, judge, told.append, threading.Event()), told


def best_of(recipe: TrainRecipe) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(recipe.output, "best.json").read_text())
    return found


def steps(found: dict[str, Any], outcome: str) -> list[int]:
    return [one["step"] for one in found[outcome]]


def test_one_is_judged_at_a_time_and_the_newest_waits(tmp_path: Path) -> None:
    recipe, exam = run_in(tmp_path), Exam(5, 4)
    validation, told = validation_of(recipe, exam)
    with validation:
        for step in (1, 2, 3, 4):
            validation.hear(export_of(recipe, step))
        assert exam.begun.wait(LONGEST_S)
        assert exam.asked == ["000001"]
        exam.go_on.set()
    assert exam.asked == ["000001", "000004"]
    found = best_of(recipe)
    assert (steps(found, "judged"), steps(found, "passed_over"), found["failed"]) == ([1, 4], [2, 3], [])
    assert [found[name] for name in ("name", "metric", "value", "items", "suite_digest")] == [
        "average_pool-16-tune-000001",
        "micro",
        0.5,
        10,
        "suite",
    ]
    assert found["digest"] == "digest of average_pool-16-tune-000001"
    assert found["judged"][0]["scores"] == {"micro": 0.5, "macro": 0.5, "GU": 0.5}
    kinds = [note["kind"] for note in told]
    assert kinds == ["validation_passed_over"] * 2 + ["validation_judged"] * 2
    assert [note["standing"] for note in told[2:]] == [
        "the best so far",
        "best is average_pool-16-tune-000001 with 0.500",
    ]


@pytest.mark.parametrize("wrong", [RuntimeError("line one\nno such luck"), TimeoutError("longer than 3 s")])
def test_what_goes_wrong_is_told_and_never_the_best(tmp_path: Path, wrong: Exception) -> None:
    recipe, exam = run_in(tmp_path, tune=2), Exam(1, wrong)
    exam.go_on.set()
    validation, told = validation_of(recipe, exam)
    with validation:
        validation.hear(export_of(recipe, 1))
        validation.hear(export_of(recipe, 2))
    found = best_of(recipe)
    assert (steps(found, "judged"), steps(found, "failed"), found["value"]) == ([1], [2], 0.1)
    (note,) = [note for note in told if note["kind"] == "validation_failed"]
    assert note["name"] == "average_pool-16-tune-000002"
    assert note["why"] == str(wrong).splitlines()[-1]


def test_where_all_go_wrong_there_is_no_best(tmp_path: Path) -> None:
    recipe, exam = run_in(tmp_path, tune=1), Exam(ValueError("damaged"))
    exam.go_on.set()
    validation, _ = validation_of(recipe, exam)
    with validation:
        validation.hear(export_of(recipe, 1))
    found = best_of(recipe)
    assert (found["name"], found["value"], found["items"], steps(found, "failed")) == (None, None, 0, [1])
    assert outstanding(recipe) == []


def test_the_latest_the_best_and_what_is_pending_stay(tmp_path: Path) -> None:
    recipe, exam = run_in(tmp_path, tune=5, keep_exports=1), Exam(7, 6, 8)
    validation, told = validation_of(recipe, exam)
    with validation:
        for step in (1, 2, 3):
            validation.hear(export_of(recipe, step))
        assert exam.begun.wait(LONGEST_S)
        assert there(recipe) == [1, 3]  # 1 is being judged, 3 waits; 2 was passed over
        exam.go_on.set()
        validation._finish()
        assert there(recipe) == [1, 3]  # 1 is the best, 3 the latest
        validation.hear(export_of(recipe, 4))
        validation._finish()
        assert there(recipe) == [4]  # 4 is both
    assert [note["name"][-1] for note in told if note["kind"] == "retired"] == ["2", "3", "1"]


def test_without_validation_the_latest_stay(tmp_path: Path) -> None:
    recipe = run_in(tmp_path, every=0, keep_exports=2)
    validation, _ = validation_of(recipe, Exam())
    with validation:
        for step in (1, 2, 3, 4):
            validation.hear(export_of(recipe, step))
            assert there(recipe) == list(range(max(1, step - 1), step + 1))
    assert not Path(recipe.output, "best.json").exists()


def test_the_end_judges_what_no_note_has_told_of(tmp_path: Path) -> None:
    recipe, exam = run_in(tmp_path, tune=3, every=2), Exam(2, 3)
    exam.go_on.set()
    for step in (1, 2, 3):
        export_of(recipe, step)
    assert [export.step for export in outstanding(recipe)] == [2, 3]
    validation, _ = validation_of(recipe, exam)
    with validation:
        pass
    assert steps(best_of(recipe), "judged") == [2, 3]
    assert outstanding(recipe) == []


def test_a_run_that_fails_leaves_its_exports_to_the_run_that_goes_on(tmp_path: Path) -> None:
    recipe, begun = run_in(tmp_path, tune=2), threading.Event()
    cancelled = threading.Event()

    def endless(_: str) -> list[Record]:
        begun.set()
        assert cancelled.wait(LONGEST_S)
        raise CancelledError

    validation = Validation(recipe, endless, lambda _: None, cancelled)

    def train() -> None:
        with validation:
            validation.hear(export_of(recipe, 1))
            assert begun.wait(LONGEST_S)
            raise RuntimeError("a worker died")

    with pytest.raises(RuntimeError, match="a worker died"):
        train()
    assert not validation._thread.is_alive()
    assert [export.step for export in outstanding(recipe)] == [1]
    exam = Exam(3, 4)
    exam.go_on.set()
    again, _ = validation_of(recipe, exam)
    with again:
        again.hear(export_of(recipe, 2))
    assert sorted(steps(best_of(recipe), "judged")) == [1, 2]


def test_an_export_made_anew_is_judged_anew(tmp_path: Path) -> None:
    recipe, exam = run_in(tmp_path, tune=1), Exam(3, 4)
    exam.go_on.set()
    for digest in ("first", "first", "second"):
        validation, _ = validation_of(recipe, exam)
        with validation:
            validation.hear(export_of(recipe, 1, digest=digest))
    assert len(exam.asked) == 2
    assert [one["digest"] for one in best_of(recipe)["judged"]] == ["second"]


def test_a_metric_that_the_suite_lacks_is_a_failure_with_the_way_out(tmp_path: Path) -> None:
    recipe, exam = run_in(tmp_path, tune=1, metric="RC"), Exam(3)
    exam.go_on.set()
    validation, told = validation_of(recipe, exam)
    with validation:
        validation.hear(export_of(recipe, 1))
    assert told[0]["why"] == "validation.metric is RC, of which the suite has no item: draw a larger one"


def test_a_store_that_fails_costs_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, exam = run_in(tmp_path, tune=1), Exam(3)
    exam.go_on.set()

    def broken(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("pipelines.training.verdicts.write_atomic", broken)
    validation, told = validation_of(recipe, exam)
    with validation:
        validation.hear(export_of(recipe, 1))
    assert [note["kind"] for note in told] == ["best_unwritten", "validation_judged"]
    assert told[0]["error"] == "no space left"
