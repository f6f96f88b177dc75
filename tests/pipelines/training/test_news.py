import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cluster.progress import Progress
from pipelines.training.news import News
from tests.pipelines.training.judged import run_in

STEP = {"kind": "step", "stage": "tune", "steps": 4, "loss": 1.0, "seconds": 1.0, "samples_per_s": 1.0}
VERDICT = {
    "kind": "validation_judged",
    "name": "average_pool-16-tune-000001",
    "stage": "tune",
    "metric": "micro",
    "value": 0.25,
    "items": 50,
    "seconds": 4.0,
    "standing": "the best so far",
    "scores": {"micro": 0.25, "GU": 0.5},
}


class Kept:
    """A tracker that remembers."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, dict[str, float]]] = []
        self.closed = False

    def facts(self, facts: Mapping[str, Any]) -> None: ...

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        judged = {name: value for name, value in values.items() if name.startswith("vtcbench/")}
        self.seen.append((step, judged))

    def close(self) -> None:
        self.closed = True


def test_verdicts_reach_trackers_with_steps_that_never_go_back(tmp_path: Path) -> None:
    kept, out = Kept(), io.StringIO()
    news = News(run_in(tmp_path, align=10), Progress(stream=out), kept)
    for note in ({**STEP, "step": 2}, {**VERDICT, "step": 1}, {**STEP, "step": 3}, {**STEP, "step": 4}):
        news.hear(note)
    for at in (3, 4):
        news.hear({**VERDICT, "step": at})
    news.close()
    judged = {"vtcbench/micro": 0.25, "vtcbench/GU": 0.5}
    assert kept.seen == [
        (12, {}),
        (13, {"vtcbench/step": 11, **judged}),
        (14, {}),
        (15, {"vtcbench/step": 13, **judged}),
        (16, {"vtcbench/step": 14, **judged}),
    ]
    assert kept.closed
    assert "judged average_pool-16-tune-000001: micro 0.250 over 50 items in 4 s, the best so far" in out.getvalue()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["kind"] for line in lines].count("validation_judged") == 3


def test_a_failure_names_checkpoint_and_reason(tmp_path: Path) -> None:
    out = io.StringIO()
    news = News(run_in(tmp_path), Progress(stream=out), Kept())
    news.hear({"kind": "validation_failed", "name": "one", "why": "it took longer than 3 s"})
    assert "WARNING: one was not judged and cannot be the best, training goes on: it took longer than 3 s" in (
        out.getvalue()
    )


def test_notes_are_there_while_the_run_goes_on_and_a_start_takes_back_the_steps_after_it(tmp_path: Path) -> None:
    out = io.StringIO()
    killed = News(run_in(tmp_path), Progress(stream=out), Kept())
    for at in (1, 2, 3):
        killed.hear({**STEP, "step": at})
    place = tmp_path / "metrics.jsonl"
    assert [json.loads(line)["step"] for line in place.read_text().splitlines()] == [1, 2, 3]
    again = News(run_in(tmp_path), Progress(stream=out), Kept())
    again.hear({"kind": "start", "stage": "tune", "step": 2})
    again.hear({**STEP, "step": 3})
    again.close()
    assert [json.loads(line)["step"] for line in place.read_text().splitlines()] == [1, 2, 3]
    assert (tmp_path / "curves.png").exists()
    assert "start" not in out.getvalue()
