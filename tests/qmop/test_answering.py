from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from PIL import Image

from qmop.answering import answer, prompt
from qmop.modeling_qmop import QMoPForConditionalGeneration
from qmop.processing_qmop import QMoPProcessor
from qmop.tiny.assemble import tiny_model, tiny_processor

Pictures = Callable[[int], list[Image.Image]]
QUESTIONS = ["what colour is the circle ?", "how many red objects are there in it ?", "is it red ?"]


@pytest.fixture(scope="module")
def mixture() -> tuple[QMoPForConditionalGeneration, QMoPProcessor]:
    torch.manual_seed(0)
    return tiny_model("qmop", 16), tiny_processor(16)


def test_the_prompt_is_the_chat_template(mixture: tuple[QMoPForConditionalGeneration, QMoPProcessor]) -> None:
    assert prompt(mixture[1], "is it red ?") == "<s><user><image> is it red ? <assistant>"


def test_answers_tell_tokens_and_weights(
    mixture: tuple[QMoPForConditionalGeneration, QMoPProcessor], pictures: Pictures
) -> None:
    told = answer(*mixture, pictures(3), QUESTIONS)
    assert [one.visual_tokens for one in told] == [16, 16, 16]
    for one in told:
        assert one.branch_weights is not None
        assert sum(one.branch_weights) == pytest.approx(1.0, abs=1e-6)
        assert one.branch_weights.count(0.0) == 1
        assert "<" not in one.text


def test_tiles_of_a_picture_are_told_together(pictures: Pictures) -> None:
    torch.manual_seed(0)
    model, processor = tiny_model("qmop", 16), tiny_processor(16)
    processor.max_tiles, processor.tile_separators = 4, [",", ";"]
    wide = [picture.resize((200, 100)) for picture in pictures(2)]
    told = answer(model, processor, [wide[0], wide[1].crop((0, 0, 90, 90))], QUESTIONS[:2])
    assert [one.visual_tokens for one in told] == [3 * 16, 16]
    assert all(sum(one.branch_weights or ()) == pytest.approx(1.0, abs=1e-6) for one in told)


def test_an_elastic_method_answers_at_another_budget(pictures: Pictures) -> None:
    torch.manual_seed(0)
    model, processor = tiny_model("qmop-elastic", 16), tiny_processor(16)
    for budget, expected in ((None, 16), (4, 4)):
        told = answer(model, processor, pictures(1), QUESTIONS[:1], visual_tokens=budget)
        assert told[0].visual_tokens == expected


def test_a_batch_answers_as_its_rows_do(
    mixture: tuple[QMoPForConditionalGeneration, QMoPProcessor], pictures: Pictures
) -> None:
    together = answer(*mixture, pictures(3), QUESTIONS)
    for picture, question, told in zip(pictures(3), QUESTIONS, together, strict=True):
        (one,) = answer(*mixture, [picture], [question])
        assert one.text == told.text
        assert one.branch_weights == pytest.approx(told.branch_weights, abs=1e-5)


def test_methods_without_branches_have_no_weights(pictures: Pictures) -> None:
    (told,) = answer(tiny_model("average_pool", 9), tiny_processor(9), pictures(1), QUESTIONS[:1], max_new_tokens=2)
    assert told.branch_weights is None
    assert told.visual_tokens == 9


def test_the_text_is_what_the_model_writes_up_to_its_end(pictures: Pictures) -> None:
    model, processor = tiny_model("average_pool", 9), tiny_processor(9)
    script = [processor.tokenizer.convert_tokens_to_ids(word) for word in ("red", "circle", "</s>", "blue")]
    steps = iter(script)

    def dictate(_: torch.nn.Module, __: object, output: torch.Tensor) -> torch.Tensor:
        told = torch.full_like(output, -1e4)
        told[..., next(steps)] = 0.0
        return told

    model.lm_head.register_forward_hook(dictate)
    assert answer(model, processor, pictures(1), QUESTIONS[:1])[0].text == "red circle"
    assert next(steps) == script[-1]  # it stopped at the end token


def test_pictures_and_questions_must_match(
    mixture: tuple[QMoPForConditionalGeneration, QMoPProcessor], pictures: Pictures
) -> None:
    with pytest.raises(ValueError, match="there are 2 images but 1 questions"):
        answer(*mixture, pictures(2), QUESTIONS[:1])


def test_no_questions_have_no_answers(mixture: tuple[QMoPForConditionalGeneration, QMoPProcessor]) -> None:
    assert answer(*mixture, [], []) == []
