from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from qmop.answering import answer
from qmop.tiny.assemble import assemble, tiny_processor
from qmop.tiny.pretraining import exam as exam_module
from qmop.tiny.pretraining.exam import Exam, accuracy, make_exam, sit, sit_blind
from qmop.tiny.pretraining.language import Speaker, features_of, pack
from qmop.tiny.pretraining.loop import Schedule, train
from qmop.tiny.pretraining.tower import Towers
from qmop.vtcbench.dimensions import FAMILIES
from qmop.vtcbench.rendered import suite


@pytest.fixture(scope="module")
def speaker() -> Speaker:
    torch.manual_seed(0)
    return Speaker().eval()


@pytest.fixture(scope="module")
def exam(speaker: Speaker) -> Exam:
    return make_exam(suite(5, 40), speaker)


def test_an_exam_is_its_items(speaker: Speaker, exam: Exam) -> None:
    assert (len(exam.items), exam.pixels.shape) == (40, (40, 96, 96, 3))
    for item, texts in zip(exam.items, exam.texts, strict=True):
        assert speaker.tokenizer.decode(texts.questions[0]) == item.question
        assert speaker.tokenizer.decode(texts.answers[0]) == item.answers[0]
        assert texts.focus == (item.focus,)


def test_what_is_right_is_what_greedy_decoding_says(exam: Exam) -> None:
    torch.manual_seed(1)
    speaker = Speaker()

    def losses(_: int) -> dict[str, torch.Tensor]:
        packed = pack(speaker.tokenizer, exam.texts, captions=False)
        return {"all": speaker(features_of(None, slice(0, 40), 40), packed)}

    train(speaker, losses, Schedule(steps=30, learning_rate=4e-3, warmup=2), lambda _: None)
    right = sit(speaker, exam, lambda part: features_of(None, part, len(exam.items[part])))
    model, processor = assemble(Towers(), speaker, blind=True), tiny_processor(1)
    images = [Image.fromarray(picture) for picture in exam.pixels]
    said = answer(model, processor, images, [item.question for item in exam.items])
    assert [one.text in item.answers for one, item in zip(said, exam.items, strict=True)] == right.tolist()
    assert 5 <= right.sum() <= 39


def test_sitting_does_not_depend_on_the_batch(speaker: Speaker, exam: Exam) -> None:
    whole, parts = (sit(speaker, exam, lambda p: features_of(None, p, len(exam.items[p])), batch=b) for b in (40, 7))
    assert np.array_equal(whole, parts)


def test_accuracy_is_told_by_field_and_in_all(exam: Exam) -> None:
    right = np.array([item.dimension == "LD" for item in exam.items])
    assert accuracy(exam.items, right, "dimension") == {"GU": 0, "SC": 0, "RC": 0, "SE": 0, "LD": 1, "micro": 0.2}
    assert set(accuracy(exam.items, right, "level")) == {"core", "micro"}


def test_a_blind_speaker_is_judged_on_questions_alone(speaker: Speaker) -> None:
    drawn = [rendered.item for rendered in suite(6, 60)]
    told = sit_blind(speaker, 6, 60)
    assert list(told) == [family.task for family in FAMILIES]
    exam = make_exam(suite(6, 60), speaker)
    right = sit(speaker, exam, lambda part: features_of(None, part, len(exam.items[part])))
    assert told == {task: share for task, share in accuracy(drawn, right, "task").items() if task != "micro"}


def test_a_blind_speaker_that_always_says_yes_is_at_chance(speaker: Speaker, monkeypatch: pytest.MonkeyPatch) -> None:
    yes = speaker.tokenizer.convert_tokens_to_ids("yes")
    monkeypatch.setattr(exam_module, "told", lambda _, __, packed: (packed.ids == yes).any(1))
    told = sit_blind(speaker, 7, 8000)
    assert [told[task] for task in ("relation", "may_go", "mood")] == pytest.approx([0.5, 0.5, 0.0], abs=0.08)
