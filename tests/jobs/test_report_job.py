"""A store of made-up answers by real checkpoints, and everything that is written about it."""

from __future__ import annotations

import io
import json
import os
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from cluster.progress import Progress
from cluster.storage import write_atomic
from jobs import cli
from jobs import report as job
from jobs.inspection import checkpoints_of
from jobs.report import ReportRecipe, _date_of, _folder_of, write_report
from pipelines.evaluation.discovery import Candidate, discover
from pipelines.evaluation.runner import EvaluateResult
from pipelines.evaluation.store import index_of, read_index, write_index
from pipelines.evaluation.units import Generation, commit, plan_units
from pipelines.training.exports import WEIGHTS, publish
from qmop.loading import derive
from qmop.tiny.base import base_path
from qmop.vtcbench.records import judge
from qmop.vtcbench.rendered import RenderedItem
from qmop.vtcbench.suite import SuiteManifest, read_shard, write_suite
from tests.fixtures.s3_server import BUCKET


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A mixture, as it is before any training."""
    model, processor = derive(base_path("tiny"), "qmop", 16)
    model.save_pretrained(tmp_path / "mixture")
    processor.save_pretrained(tmp_path / "mixture")
    return tmp_path / "mixture"


@pytest.fixture
def results(tmp_path: Path, checkpoint: Path) -> str:
    suite = write_suite(tmp_path / "suite", 3, 100, 100)
    items = read_shard(suite.folder, suite.shards[0])
    found = discover(["uncompressed=tiny", f"mine={checkpoint}"])
    return _store(str(tmp_path / "results"), suite, items, found.candidates)


def _store(store: str, suite: SuiteManifest, items: list[RenderedItem], candidates: tuple[Candidate, ...]) -> str:
    units = plan_units(candidates, suite, Generation(max_new_tokens=4))
    for unit in units:
        one = unit.candidate
        facts = {"checkpoint": one.digest, "label": one.label, "method": one.method, "budget": one.budget}
        facts |= {"visual_tokens": one.budget, "suite_digest": suite.digest, "shard": unit.shard.url}
        commit(unit, store, [judge(r.item, r.item.choices[0], **facts) for r in items])
    result = EvaluateResult(
        records=(),
        planned=len(units),
        done=len(units),
        reused=0,
        failed={},
        suite=suite,
        units=tuple(unit.id for unit in units),
    )
    write_index(store, result)
    return store


def test_cost_is_told_without_loading_and_times_and_drawings_with_it(
    results: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["report", "--results", results]) == 0
    plain = json.loads(Path(results, "report.json").read_text())
    rows = {row["label"]: row for row in plain["rows"]}

    assert rows["uncompressed"]["cost"]["visual_tokens"] == 144
    assert rows["mine"]["cost"]["visual_tokens"] == 16
    assert rows["mine"]["cost"]["kv_bytes"] * 9 == rows["uncompressed"]["cost"]["kv_bytes"]
    assert rows["mine"]["profile"] is None
    assert plain["levels"] == {"core": 60, "hard": 20, "held_out": 20}
    assert "data:image/webp" not in Path(results, "report.html").read_text()

    wanted = ["--inspect", "true", "--rounds", "1", "--samples", "2", "--output", str(tmp_path / "page")]
    assert cli.run(["report", "--results", results, *wanted]) == 0
    page = (tmp_path / "page" / "report.html").read_text()
    profile = json.loads((tmp_path / "page" / "report.json").read_text())["rows"][1]["profile"]

    assert (profile["rows"], profile["rounds"]) == (8, 1)
    assert page.count("data:image/webp") == 2  # the mixture on two samples; without compression there is nothing
    assert "measured prefill, ms per question" in page
    assert "checkpoints inspected: 2/2" in capsys.readouterr().err


def test_lmms_eval_s_files_bear_the_date_of_the_evaluation(results: str, tmp_path: Path) -> None:
    units = sorted(Path(results, "units").glob("*.parquet"))
    ended = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC).timestamp()
    for place, moment in zip(units, (ended - 100, ended), strict=True):
        os.utime(place, (moment, moment))
    stray = Path(results, "units", "of-another-evaluation.parquet")
    stray.write_bytes(b"")
    os.utime(stray, (ended + 100, ended + 100))

    for folder in ("first", "second"):
        write_report(ReportRecipe(results=results, samples=0, output=str(tmp_path / folder)), Progress())

    tasks = [f"vtcbench_{code}" for code in ("gu", "ld", "rc", "sc", "se")]
    wanted = ["20260304_050607_results.json", *(f"20260304_050607_samples_{task}.jsonl" for task in tasks)]
    for label in ("mine", "uncompressed"):
        first, second = (sorted((tmp_path / one / "lmms_eval" / label).iterdir()) for one in ("first", "second"))
        assert [path.name for path in first] == wanted
        assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
        assert [len(path.read_text().splitlines()) for path in first[1:]] == [20] * 5


def test_a_checkpoint_that_is_gone_has_a_row_without_cost(
    results: str, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint.rename(checkpoint.with_name("elsewhere"))

    assert cli.run(["report", "--results", results, "--inspect", "true", "--rounds", "1", "--samples", "0"]) == 0
    rows = json.loads(Path(results, "report.json").read_text())["rows"]

    assert [(row["cost"] is None, row["profile"] is None) for row in rows] == [(False, False), (True, True)]
    assert f"no cost of mine: its checkpoint is no longer at {checkpoint}" in capsys.readouterr().err


def test_a_checkpoint_whose_place_another_took_is_not_taken_for_it(results: str, tmp_path: Path) -> None:
    records, _ = read_index(results)
    mine = next(record for record in records if record.label == "mine")
    model, processor = derive(base_path("tiny"), "average_pool", 16)
    facts = {"stage": "tune", "step": 1, "compressor": "average_pool", "tokens": 16, "seed": 0}
    facts |= {"recipe_digest": "r", "corpus_digest": "c"}
    card = publish(model, processor, model.state_dict(), str(tmp_path / "mixture"), facts)
    said = io.StringIO()

    assert "mine" not in checkpoints_of(results, records, Progress(said))
    assert f"another checkpoint is at {tmp_path / 'mixture'} now" in said.getvalue()
    assert "mine" in checkpoints_of(results, [replace(mine, checkpoint=card.digest)], Progress(said))
    (tmp_path / "mixture" / WEIGHTS).unlink()
    assert checkpoints_of(results, [replace(mine, checkpoint=card.digest)], Progress(said)) == {}


def test_a_recipe_of_nothing_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["report", "--results", "x", "--rounds", "0"]) == cli.MISTAKE
    assert "rounds is 0" in capsys.readouterr().err


def test_a_label_that_no_record_has_is_refused(results: str) -> None:
    with pytest.raises(ValueError, match=r"blind is 'nosuch', but .* holds records of .* alone"):
        write_report(ReportRecipe(results=results, blind="nosuch"), Progress())


def test_a_second_reference_gives_the_floor_and_unanswered_items_are_listed(
    results: str, capsys: pytest.CaptureFixture[str]
) -> None:
    records, _ = read_index(results)
    place = Path(results, "evaluation.json")
    index = json.loads(place.read_text())
    index["poisoned"] = {f"mine: {records[0].key}": "ran out of memory", "gone: x": "stale", "mine: nokey": "stale"}
    place.write_text(json.dumps(index))

    report = write_report(ReportRecipe(results=results, samples=0), Progress())
    assert [dict(row.unanswered) for row in report.rows] == [{}, {records[0].key: "ran out of memory"}]
    for name in ("report.md", "report.html"):
        assert f"{records[0].key} (ran out of memory)" in Path(results, name).read_text()
        assert "--floor LABEL" in Path(results, name).read_text()

    assert cli.run(["report", "--results", results, "--floor", "nosuch"]) == cli.MISTAKE
    assert "floor is 'nosuch', but" in capsys.readouterr().err
    assert cli.run(["report", "--results", results, "--floor", "mine"]) == cli.MISTAKE
    assert "floor is 'mine', qmop of 16 tokens, but 'uncompressed' is mlp of 144" in capsys.readouterr().err


def test_a_suite_that_was_moved_is_needed_for_pictures_alone(
    results: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "suite").rename(tmp_path / "moved")

    assert cli.run(["report", "--results", results]) == cli.MISTAKE
    said = capsys.readouterr().err
    assert f"the suite lay at '{tmp_path / 'suite'}'" in said
    assert "--suite" in said
    assert cli.run(["report", "--results", results, "--samples", "0"]) == 0
    assert "<img" not in Path(results, "report.html").read_text()
    assert cli.run(["report", "--results", results, "--suite", str(tmp_path / "moved")]) == 0
    assert Path(results, "report.html").read_text().count("<img") == 6


def test_the_floor_stands_in_every_form(results: str, monkeypatch: pytest.MonkeyPatch) -> None:
    records, suite = read_index(results)
    second = [
        replace(record, label="second", checkpoint="another", score=0.0)
        for record in records
        if record.label == "uncompressed"
    ]
    right = sum(record.score for record in records if record.label == "uncompressed")
    monkeypatch.setattr(job, "read_index", lambda _: ([*records, *second], suite))

    write_report(ReportRecipe(results=results, samples=0, floor="second"), Progress())

    found = json.loads(Path(results, "report.json").read_text())
    assert (found["floor"], found["rows"][1]["label"]) == ("second", "second")
    assert found["rows"][1]["against_reference"]["loss"]["n"] == right > 0
    assert "information loss (floor 100.0) | reverse share (floor 0.0)" in Path(results, "report.md").read_text()
    assert "floor 100.0" in Path(results, "report.html").read_text()


@pytest.mark.pipeline
def test_the_date_of_a_store_in_a_bucket_is_that_of_its_last_unit(s3_server: str) -> None:
    assert s3_server
    store = f"s3://{BUCKET}/results"
    write_atomic(f"{store}/evaluation.json", b'{"units": ["a", "b"], "suite": "s", "suite_digest": "d"}')
    for name in ("a", "b"):
        write_atomic(f"{store}/units/{name}.parquet", b"")

    assert abs((datetime.now(UTC) - _date_of(store, index_of(store))).total_seconds()) < 60


def test_every_label_has_a_folder_of_its_own() -> None:
    labels = ["g/x", "g_x", "..", ".", "a b", "../../x", "plain-16"]
    folders = [_folder_of(label) for label in labels]
    assert len(set(folders)) == len(labels)
    assert all("/" not in folder and folder.strip(".") for folder in folders)
    assert folders[-1] == "plain-16"


def test_a_seed_that_no_generator_takes_is_refused() -> None:
    with pytest.raises(ValueError, match="seed is -1, but it must be at least 0"):
        ReportRecipe(results="r", seed=-1)
