"""One run: what learns, what it is shown, and that it answers as the model does."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from qmop.annealing import router_state
from qmop.answering import answer, prompt
from qmop.compressors.mixture import Mixture
from qmop.loading import derive, load
from qmop.tiny.base import base_path
from qmop.tiny.comparison import student as studying
from qmop.tiny.comparison.material import Material, Pair, _suite_path
from qmop.tiny.comparison.rows import ROWS
from qmop.tiny.comparison.runs import examine
from qmop.tiny.comparison.student import Seen, Student, enrol, see, tune
from qmop.vtcbench.suite import read_shard
from tests.qmop.tiny.comparison.conftest import SETTINGS, unit

Told = list[tuple[int, bytes]]


def quiet(_: str) -> None:
    """Nobody listens."""


def first(material: Material, count: int) -> list[Pair]:
    return [row[0] for row in material.exam.by_picture[:count]]


def part_of(name: str) -> str:
    """The part of a model that a weight belongs to."""
    parts = ("vision_tower", "query_encoder", "multi_modal_projector", "language_model", "lm_head")
    return next(part for part in parts if part in name)


def changed(student: Student, before: dict[str, Tensor]) -> set[str]:
    after = student.model.state_dict()
    return {part_of(name) for name, value in before.items() if not torch.equal(value, after[name])}


@pytest.mark.parametrize("name", ["qmop", "tokenpacker"])
def test_first_the_projector_learns_then_the_language_model_too_and_never_the_towers(
    name: str, material: Material
) -> None:
    student = enrol(SETTINGS, unit(name))
    before = {key: value.clone() for key, value in student.model.state_dict().items()}
    tune(student, replace(SETTINGS, tune_steps=0), unit(name), material, quiet)
    assert changed(student, before) == {"multi_modal_projector"}
    tune(student, replace(SETTINGS, align_steps=0), unit(name), material, quiet)
    assert changed(student, before) == {"multi_modal_projector", "language_model", "lm_head"}
    assert not student.model.training


def test_a_row_that_is_not_tuned_is_the_base_behind_another_compressor(material: Material) -> None:
    student = enrol(SETTINGS, unit("untuned cdpruner"))
    before = {key: value.clone() for key, value in student.model.state_dict().items()}
    tune(student, SETTINGS, unit("untuned cdpruner"), material, quiet)
    assert changed(student, before) == set()
    assert not student.model.training
    base, _ = load(base_path("tiny"))
    same = base.state_dict()
    assert all(torch.equal(value, same[key]) for key, value in before.items() if "language_model" in key)
    assert any("language_model" in key for key in before)


def test_what_is_new_learns_before_anything_else_does(material: Material) -> None:
    def warmed(name: str, steps: int) -> dict[str, Tensor]:
        student = enrol(SETTINGS, unit(name))
        short = replace(SETTINGS, warm_steps=steps, align_steps=0, tune_steps=0)
        tune(student, short, unit(name), material, quiet)
        return student.model.state_dict()

    def moved(name: str) -> set[str]:
        first, second = warmed(name, 0), warmed(name, 2)
        return {key for key, value in first.items() if not torch.equal(value, second[key])}

    assert moved("downsample") == set()
    compressor = "model.multi_modal_projector.compressor.branches."
    assert {key.removeprefix(compressor).split(".")[0] for key in moved("qmop")} == {"resampler", "window_pool"}


def shown_pairs(name: str, seed: int, material: Material, monkeypatch: pytest.MonkeyPatch) -> list[Told]:
    """Pictures and questions of every step of a run."""
    shown: list[Told] = []
    loss = Student.loss

    def watched(student: Student, seen: Seen, pairs: Sequence[Pair], tokens: int | None = None) -> Tensor:
        shown.append([(pair.picture, pair.question.tobytes()) for pair in pairs])
        return loss(student, seen, pairs, tokens)

    with monkeypatch.context() as patched:
        patched.setattr(Student, "loss", watched)
        tune(enrol(SETTINGS, unit(name, seed=seed)), SETTINGS, unit(name, seed=seed), material, quiet)
    return shown


def test_rows_of_one_seed_are_shown_the_same_pairs_in_the_same_order(
    material: Material, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = {name: shown_pairs(name, 1, material, monkeypatch) for name in ("qmop", "downsample", "random")}
    assert shown["qmop"] == shown["downsample"] == shown["random"]
    assert [len(pairs) for pairs in shown["qmop"]] == [4] * 5
    assert len({tuple(pairs) for pairs in shown["qmop"]}) == 5
    assert shown_pairs("random", 2, material, monkeypatch) != shown["random"]


def watch_steps(name: str, material: Material, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, float, float]]:
    """Stage, visual tokens, temperature and noise of every step of a run."""
    found: list[tuple[int, int, float, float]] = []
    images = Student.images

    def watched(student: Student, seen: Seen, tokens: int | None = None) -> Any:
        method, output = student.compressor, images(student, seen, tokens)
        assert isinstance(method, Mixture)
        assert output.compressed is not None
        shown = output.compressed.tokens_BMC.shape[1]
        found.append((method.stage, shown, method.router.temperature, method.router.noise))
        return output

    with monkeypatch.context() as patched:
        patched.setattr(Student, "images", watched)
        tune(enrol(SETTINGS, unit(name)), SETTINGS, unit(name), material, quiet)
    return found


def test_all_branches_stand_side_by_side_first_and_are_fused_by_a_cooling_router_then(
    material: Material, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = [router_state(step, 3, ROWS["qmop"].router) for step in range(3)]
    assert [noise for _, noise in states] == [1.0, pytest.approx(7 / 12), pytest.approx(1 / 6)]
    align = [(1, 48, 0.5, 0.0)] * 2
    assert watch_steps("qmop", material, monkeypatch) == [*align, *((2, 16, *state) for state in states)]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("no noise", [(48, 0.5, 0.0)] * 2 + [(16, 2.0, 0.0), (16, 1.375, 0.0), (16, 0.75, 0.0)]),
        ("one temperature", [(48, 0.5, 0.0)] * 2 + [(16, 0.5, 1.0), (16, 0.5, 7 / 12), (16, 0.5, 1 / 6)]),
        ("no alignment", [(16, 0.5 + 1.5 * left, left) for left in (1.0, 0.75, 0.5, 0.25, 0.0)]),
    ],
)
def test_ablations_of_the_schedule_do_what_they_are_called(
    name: str, expected: list[tuple[float, ...]], material: Material, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = watch_steps(name, material, monkeypatch)
    assert [pytest.approx(step[1:]) for step in found] == expected


def heard(student: Student) -> dict[str, list[Any]]:
    """What the compressor takes for the question, and what the language model reads."""
    found: dict[str, list[Any]] = defaultdict(list)
    inner = student.model.model
    inner.multi_modal_projector.compressor.register_forward_pre_hook(
        lambda _, args, kwargs: found["compressor"].append(args[1] if len(args) > 1 else kwargs["query"]),
        with_kwargs=True,
    )
    student.model.register_forward_pre_hook(
        lambda _, __, kwargs: found["language"].append(kwargs["input_ids"]), with_kwargs=True
    )
    return found


def asks(ids: Tensor, pair: Pair, student: Student) -> bool:
    """Whether a prompt holds exactly this question: between the picture and the assistant's turn."""
    told = ids.tolist()
    end = told.index(student.words.convert_tokens_to_ids("<assistant>"))
    start = end - len(pair.question)
    return told[start - 1] == student.model.config.image_token_id and told[start:end] == pair.question.tolist()


@pytest.mark.parametrize(("name", "shift"), [("qmop", 0), ("router: another question", 1)])
def test_shuffled_rows_route_by_the_question_about_another_picture(name: str, shift: int, material: Material) -> None:
    """And the language model is asked the right one all the same, in training and when judged."""
    student = enrol(SETTINGS, unit(name))
    found = heard(student)
    tune(student, SETTINGS, unit(name), material, quiet)
    pairs = [row[0] for row in material.exam.by_picture]
    read = {pair.question.tobytes(): pair for row in material.train.by_picture for pair in row}
    examine(student, unit(name), material, "", 0.0)
    asked = material.exam.questions.rows([pair.question for pair in pairs]).text_BE
    assert torch.equal(found["compressor"][-1].text_BE, asked.roll(-shift, 0))
    judged = next(ids for ids in found["language"] if len(ids) == len(pairs))
    assert all(asks(ids, pair, student) for ids, pair in zip(judged, pairs, strict=True))
    for query, ids in list(zip(found["compressor"], found["language"], strict=False))[:5]:
        own = [next(pair for pair in read.values() if asks(row, pair, student)) for row in ids]
        told = material.train.questions.rows([pair.question for pair in own]).text_BE
        assert torch.equal(query.text_BE, told.roll(-shift, 0))


def test_prompts_are_those_of_the_processor(material: Material) -> None:
    model, processor = derive(base_path("tiny"), "average_pool", 16)
    student, pairs = Student(model, processor), first(material, 6)
    ids, mask, labels = student._prompts(pairs, 16, answered=False)
    texts = [prompt(processor, item.question) for item in material.items[:6]]
    images = [Image.new("RGB", (96, 96))] * 6
    batch = processor(images=images, text=texts, padding=True, return_tensors="pt")
    assert torch.equal(ids, batch["input_ids"])
    assert torch.equal(mask, batch["attention_mask"])
    assert (labels == -100).all()


@torch.no_grad()
def test_the_loss_is_the_cross_entropy_of_answers_and_their_end(material: Material) -> None:
    model, processor = derive(base_path("tiny"), "average_pool", 16)
    student, pairs = Student(model, processor), first(material, 8)
    losses: list[Tensor] = []
    for pair in pairs:
        seen = see(material.exam, [pair], student)
        ids, _, _ = student._prompts([pair], 16, answered=True)
        logits = model(input_ids=ids, mm_encoder_outputs={"image": student.images(seen)}).logits[0]
        told = [*pair.answer.tolist(), processor.tokenizer.eos_token_id]
        assert ids[0, -len(told) :].tolist() == told
        losses += F.cross_entropy(logits[-len(told) - 1 : -1], torch.tensor(told), reduction="none").unbind()
    whole = student.loss(see(material.exam, pairs, student), pairs)
    torch.testing.assert_close(whole, torch.stack(losses).mean(), rtol=1e-4, atol=1e-4)
    assert len({len(pair.question) for pair in pairs}) > 1


@pytest.mark.parametrize(("name", "tokens"), [("uncompressed", 144), ("qmop", 16), ("downsample", 16)])
def test_answers_are_those_of_the_model_that_sees_the_pictures(
    name: str, tokens: int, material: Material, work: Path
) -> None:
    one = unit(name, tokens=tokens)
    model, processor = derive(base_path("tiny"), one.row.method, tokens, one.row.options)
    student = Student(model, processor)
    tune(student, SETTINGS, one, material, quiet)
    told, compressed = student.answers(see(material.exam, pairs := first(material, 20), student), pairs)
    folder = _suite_path(SETTINGS, work)
    drawn = read_shard(folder, material.suite.shards[0])[:20]
    pictures = [Image.open(io.BytesIO(rendered.image)) for rendered in drawn]
    direct = answer(model, processor, pictures, [rendered.item.question for rendered in drawn], max_new_tokens=6)
    assert sum(text.strip() == seen.text for text, seen in zip(told, direct, strict=True)) >= 19  # half precision
    assert len({seen.text for seen in direct}) > 3
    assert [seen.visual_tokens for seen in direct] == compressed.counts_B.tolist() == [tokens] * 20
    if (weights := compressed.branch_weights_BS) is not None:
        expected = torch.tensor([seen.branch_weights for seen in direct])
        torch.testing.assert_close(weights, expected, rtol=0, atol=2e-3)


def test_there_is_room_for_every_answer_and_its_end(material: Material) -> None:
    pairs = [pair for one in (material.train, material.exam) for row in one.by_picture for pair in row]
    assert 2 <= max(len(pair.answer) for pair in pairs) < studying._LONGEST_ANSWER


def test_a_student_starts_from_its_seed() -> None:
    def start(seed: int) -> Tensor:
        torch.rand(seed + 1)  # moves the global stream, which must not matter
        compressor = enrol(SETTINGS, unit("qmop", seed=seed)).compressor
        assert isinstance(compressor, Mixture)
        return compressor.router.enter.weight

    assert torch.equal(start(1), start(1))
    assert not torch.equal(start(1), start(2))


def test_a_method_that_draws_takes_the_seed_of_the_run() -> None:
    started = [enrol(SETTINGS, unit("random", seed=seed)) for seed in (0, 3)]
    assert [student.model.config.compressor_options for student in started] == [{"seed": 0}, {"seed": 3}]
