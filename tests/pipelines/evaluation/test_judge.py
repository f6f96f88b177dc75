"""One process that answers: sharing passes of the tower, poisoned items, and checkpoints that change."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from pipelines.evaluation import answering, judge
from pipelines.evaluation.discovery import Candidate, discover
from pipelines.evaluation.judge import Done
from pipelines.evaluation.recipe import TowerRecipe
from pipelines.evaluation.sources import views_of
from pipelines.evaluation.suspicion import WorkerError
from pipelines.evaluation.units import Generation, Unit, facts_of, plan_units, results_of
from qmop.answering import Answer
from qmop.loading import derive
from qmop.tiny.base import base_path
from qmop.vtcbench.records import Record
from qmop.vtcbench.rendered import RenderedItem, suite
from qmop.vtcbench.suite import ShardInfo, SuiteManifest, decode_shard, write_suite
from tests.pipelines.evaluation.test_discovery import export

GENERATION = Generation(max_new_tokens=3)


def sitting(store: Path, asked: SuiteManifest, tower: TowerRecipe | None = None, batch: int = 10) -> Any:
    """A judge without a process of its own."""
    own = judge.Judge.__ray_metadata__.modified_class  # type: ignore[attr-defined]
    return own(str(store), asked.folder, batch, 1, tower)


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> SuiteManifest:
    return write_suite(tmp_path_factory.mktemp("suite"), 3, 24, 12)


@pytest.fixture(scope="module")
def candidates(tmp_path_factory: pytest.TempPathFactory) -> tuple[Candidate, ...]:
    """Methods over the embedded base that read different things off its tower, and one that shows it other pictures."""
    folder = tmp_path_factory.mktemp("methods")
    for name in ("average_pool", "qmop", "tokenpacker", "prumerge", "downsample"):
        torch.manual_seed(0)
        model, processor = derive(base_path("tiny"), name, 16)
        model.save_pretrained(folder / name)
        processor.save_pretrained(folder / name)
    return discover([str(path) for path in sorted(folder.iterdir())]).candidates


def without_time(records: Sequence[Record]) -> list[dict[str, Any]]:
    return [asdict(record) | {"seconds": 0.0} for record in records]


def test_a_shared_pass_gives_the_same_answers_and_looks_at_a_picture_once(
    asked: SuiteManifest, candidates: tuple[Candidate, ...], tmp_path: Path
) -> None:
    units, views = plan_units(candidates, asked, GENERATION), views_of(candidates)
    alone, shared = sitting(tmp_path / "a", asked), sitting(tmp_path / "b", asked, _tower(tmp_path))
    done = {unit.name: (alone.run(unit), shared.run(unit, 7, views)) for unit in units}
    one, other = (results_of([unit.id for unit in units], str(tmp_path / name)) for name in "ab")
    assert without_time(one.records) == without_time(other.records)
    assert len(one.records) == 5 * 24
    assert {pair[0].looked for pair in done.values()} == {0}
    looked = {name: pair[1].looked for name, pair in done.items() if pair[1].looked}
    assert set(looked.values()) == {12}
    assert {name.split(" ")[0] for name in looked} == {candidates[0].label, "downsample"}
    assert facts_of(units[0].id, str(tmp_path / "b"))["fence"] == 7


def test_the_model_really_reads_what_was_kept(
    asked: SuiteManifest, candidates: tuple[Candidate, ...], tmp_path: Path
) -> None:
    (unit, _), views = plan_units(candidates[:1], asked, GENERATION), views_of(candidates)
    shared = sitting(tmp_path / "b", asked, _tower(tmp_path))
    shared.run(unit, 0, views)
    counters = shared.loaded.tower.counters
    assert (counters.hits, counters.misses) == (12, 0)


def test_other_weights_of_a_tower_share_nothing(asked: SuiteManifest, tmp_path: Path) -> None:
    found = []
    for seed in (0.0, 0.01):
        model, processor = derive(base_path("tiny"), "average_pool", 16)
        with torch.no_grad():
            model.model.vision_tower.post_layernorm.weight += seed
        model.save_pretrained(tmp_path / f"m{seed}")
        processor.save_pretrained(tmp_path / f"m{seed}")
        found += discover([str(tmp_path / f"m{seed}")]).candidates
    shared = sitting(tmp_path / "b", asked, _tower(tmp_path))
    assert [shared.run(plan_units([one], asked, GENERATION)[0]).looked for one in found] == [12, 12]


def test_too_small_a_cache_costs_time_alone(
    asked: SuiteManifest, candidates: tuple[Candidate, ...], tmp_path: Path
) -> None:
    small = TowerRecipe(folder=str(tmp_path / "features"), cache_mb=1)
    (first, second) = plan_units(candidates[:1], asked, GENERATION)
    shared, alone = sitting(tmp_path / "b", asked, small), sitting(tmp_path / "a", asked)
    for unit in (first, second):
        assert shared.run(unit).looked == 12
        alone.run(unit)
    one, other = (results_of([first.id, second.id], str(tmp_path / name)) for name in "ab")
    assert without_time(one.records) == without_time(other.records)
    assert sum(path.stat().st_size for path in (tmp_path / "features").rglob("*.safetensors")) < 1.1 * 2**20


def test_a_unit_that_is_there_is_not_done_again(
    asked: SuiteManifest, candidates: tuple[Candidate, ...], tmp_path: Path
) -> None:
    unit, _ = plan_units(candidates[:1], asked, GENERATION)
    first, second = (sitting(tmp_path, asked) for _ in range(2))
    assert first.run(unit).ours
    assert not second.run(unit).ours
    assert second.loaded is None


def test_what_cannot_be_read_or_computed_counts_as_wrong_and_is_listed(
    asked: SuiteManifest, candidates: tuple[Candidate, ...], tmp_path: Path
) -> None:
    unit, _ = plan_units([one for one in candidates if one.label == "average_pool"], asked, GENERATION)
    shared = sitting(tmp_path, asked, _tower(tmp_path))
    items = list(shared._shard(unit))
    shared.items[unit.shard.url] = [replace(items[0], image=b"no picture"), *items[1:]]
    (model, *_), victim = shared._loaded(unit)[1:], items[5].item
    poisoned = shared.loaded.processor.tokenizer(victim.question)["input_ids"]

    def spoil(module: Any, args: Any, kwargs: Any, output: Any) -> None:
        ids = kwargs.get("input_ids")
        del module, args
        if ids is not None and ids.shape[1] > 1:
            rows = [set(poisoned) <= set(row.tolist()) for row in ids]
            output.logits[torch.tensor(rows), -1] = torch.nan

    model.register_forward_hook(spoil, with_kwargs=True)
    done = shared.run(unit)
    result = results_of([unit.id], str(tmp_path))
    wrong = {record.key for record in result.records if not record.parsable and not record.prediction}
    reasons = {name.split(": ")[1]: why for name, why in result.poisoned.items()}
    assert victim.key in reasons
    assert items[0].item.key in reasons
    assert reasons[victim.key] == answering.NOT_FINITE
    assert "identify" in reasons[items[0].item.key]
    assert done.poisoned == len(reasons) <= len(wrong)
    assert len(result.records) == done.items == 12
    assert all(record.score == 0.0 for record in result.records if record.key in reasons)


@pytest.mark.parametrize("batch", [12, 5])
def test_answers_that_ended_at_the_limit_are_counted(
    asked: SuiteManifest, candidates: tuple[Candidate, ...], tmp_path: Path, batch: int
) -> None:
    alone = sitting(tmp_path, asked, batch=batch)
    cut: dict[int, int] = {}
    for longest in (1, 3, 40):
        (unit, _) = plan_units(candidates[:1], asked, Generation(max_new_tokens=longest))
        alone.run(unit)
        tokenizer = alone.loaded.processor.tokenizer
        result = results_of([unit.id], str(tmp_path))
        cut[longest] = result.cut.get(candidates[0].label, 0)
        assert cut[longest] == facts_of(unit.id, str(tmp_path)).get("cut", 0)
        lengths = [len(tokenizer(one.prediction, add_special_tokens=False)["input_ids"]) for one in result.records]
        assert cut[longest] == sum(length >= longest for length in lengths)
    assert 12 > cut[1] > cut[40] == 0


def test_nothing_is_recorded_where_nothing_can_be_answered(
    asked: SuiteManifest, candidates: tuple[Candidate, ...], tmp_path: Path
) -> None:
    unit, _ = plan_units(candidates[:1], asked, GENERATION)
    alone = sitting(tmp_path, asked)
    alone.items[unit.shard.url] = [replace(one, image=b"x") for one in alone._shard(unit)]
    with pytest.raises(WorkerError, match="none of 12 items could be answered"):
        alone.run(unit)
    assert not (tmp_path / "units").exists()


class Failing:
    """Answers, until and unless a question is asked that costs the process its device."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fatal: Sequence[str], calls: int = 10**9) -> None:
        self.fatal, self.calls, self.lost, self.asked = fatal, calls, False, []
        monkeypatch.setattr(answering, "answer", self)

    def __call__(self, _model: Any, _processor: Any, _images: Any, questions: list[str], **_: Any) -> list[Answer]:
        self.asked.append(len(questions))
        self.lost |= len(self.asked) > self.calls or not set(questions).isdisjoint(self.fatal)
        if self.lost:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return [Answer(text="yes", visual_tokens=16) for _ in questions]


def test_a_device_that_is_lost_in_mid_shard_scores_nothing(
    asked: SuiteManifest, candidates: tuple[Candidate, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unit, _ = plan_units(candidates[:1], asked, GENERATION)
    Failing(monkeypatch, [], calls=2)
    with pytest.raises(WorkerError, match="illegal memory access") as told:
        sitting(tmp_path, asked, batch=4).run(unit)
    assert len(told.value.doubted) == 4
    assert not (tmp_path / "units").exists()
    Failing(monkeypatch, [])
    assert sitting(tmp_path, asked, batch=4).run(unit, 0, (), told.value.doubted) == Done(12, 0)


def test_an_item_that_costs_every_process_its_device_is_found_and_counts_as_wrong(
    asked: SuiteManifest, candidates: tuple[Candidate, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unit, _ = plan_units(candidates[:1], asked, GENERATION)
    items = decode_shard(Path(asked.folder, unit.shard.url).read_bytes(), unit.shard)
    batches = answering.batches_of(sitting(tmp_path, asked)._loaded(unit).processor, items, 4)
    questions = [one.item.question for one in items]
    odd = next(one.item for batch in batches for one in batch[:-1] if questions.count(one.item.question) == 1)
    doubted: tuple[str, ...] = ()
    for expected in (4, 1):
        Failing(monkeypatch, [odd.question])
        with pytest.raises(WorkerError) as told:
            sitting(tmp_path, asked, batch=4).run(unit, 0, (), doubted)
        doubted = told.value.doubted
        assert len(doubted) == expected
        assert odd.key in doubted
    Failing(monkeypatch, [odd.question])
    done = sitting(tmp_path, asked, batch=4).run(unit, 0, (), doubted)
    assert (done.items, done.poisoned, done.worn) == (12, 1, True)
    assert list(results_of([unit.id], str(tmp_path)).poisoned) == [f"{candidates[0].label}: {odd.key}"]


def test_a_run_of_lone_failures_is_put_to_another_process(
    asked: SuiteManifest, candidates: tuple[Candidate, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unit, _ = plan_units(candidates[:1], asked, GENERATION)
    calls: list[int] = []

    def weary(_model: Any, _processor: Any, _images: Any, questions: list[str], **_: Any) -> list[Answer]:
        calls.append(len(questions))
        if len(calls) > 1:
            raise RuntimeError("no memory is left")
        return [Answer(text="yes", visual_tokens=16) for _ in questions]

    monkeypatch.setattr(answering, "answer", weary)
    with pytest.raises(WorkerError, match="3 questions in a row could not be answered") as told:
        sitting(tmp_path, asked, batch=4).run(unit)
    assert calls == [4, 4, 1, 1, 1]
    assert len(told.value.doubted) == 3
    assert not (tmp_path / "units").exists()


def test_a_picture_that_the_shared_pass_refuses_costs_only_itself(
    asked: SuiteManifest, candidates: tuple[Candidate, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (unit, _) = plan_units([one for one in candidates if one.label == "average_pool"], asked, GENERATION)
    shared = sitting(tmp_path, asked, _tower(tmp_path), batch=4)
    items, loaded = list(shared._shard(unit)), shared._loaded(unit)
    shared.items[unit.shard.url] = [replace(items[0], image=_bomb()), replace(items[1], image=_png(7, 5)), *items[2:]]
    real = type(loaded.processor.image_processor).__call__

    def refusing(self: Any, images: Any, **options: Any) -> Any:
        if any(getattr(image, "size", None) == (7, 5) for image in images):
            raise KeyError("this picture cannot be prepared")
        return real(self, images, **options)

    monkeypatch.setattr(type(loaded.processor.image_processor), "__call__", refusing)
    done = shared.run(unit)
    assert (done.items, done.poisoned) == (12, 2)
    assert done.looked in {11 - 4, 11 - 3}  # all but the batch of the picture that was refused
    reasons = results_of([unit.id], str(tmp_path)).poisoned
    assert "decompression bomb" in reasons[f"average_pool: {items[0].item.key}"]
    assert "cannot be prepared" in reasons[f"average_pool: {items[1].item.key}"]


def _png(width: int, height: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (width, height)).save(out, "PNG")
    return out.getvalue()


def _bomb() -> bytes:
    """A small file that says that it holds 900 million pixels."""
    data = bytearray(_png(1, 1))
    data[16:24] = struct.pack(">II", 30000, 30000)
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    return bytes(data)


def test_one_bad_item_costs_only_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    items = list(suite(0, 7))
    broken = RenderedItem(item=items[3].item, image=b"no picture")
    calls: list[int] = []

    def answer(model: object, processor: object, images: list, questions: list, *, max_new_tokens: int) -> list[Answer]:
        del model, processor, images, max_new_tokens
        calls.append(len(questions))
        return [Answer(text=question, visual_tokens=16) for question in questions]

    monkeypatch.setattr(answering, "answer", answer)
    told = answering.answered(torch.nn.Identity(), None, [*items[:3], broken, *items[4:]], 8)
    assert [one.answer is None for one in told] == [False, False, False, True, False, False, False]
    assert [one.answer.text for one in told if one.answer] == [
        rendered.item.question for rendered in items if rendered is not items[3]
    ]
    assert calls == [1] * 6


def test_pictures_are_what_the_items_hold() -> None:
    rendered = next(iter(suite(0, 1)))
    assert Image.open(io.BytesIO(rendered.image)).size == (96, 96)


def test_a_checkpoint_made_anew_is_not_judged_under_its_old_digest(asked: SuiteManifest, tmp_path: Path) -> None:
    (candidate,) = discover([str(export(tmp_path, 1))]).candidates
    shard = ShardInfo(url="s", sha256="s", md5="m", count=1, size=1)
    old = replace(candidate, digest="of what was there before")
    unit = Unit(candidate=old, shard=shard, suite_digest="s", generation=GENERATION)
    with pytest.raises(ValueError, match="exported anew"):
        sitting(tmp_path / "store", asked)._loaded(unit)


def _tower(folder: Path) -> TowerRecipe:
    return TowerRecipe(folder=str(folder / "features"))
