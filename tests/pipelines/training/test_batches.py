import io

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.corpus.micro_batches import MicroBatch
from pipelines.training.batches import Collator, ahead
from pipelines.training.objective import Objective
from qmop.loading import derive
from qmop.placeholders import IGNORED
from qmop.queries import draw_turn
from qmop.tiny.assemble import tiny_processor
from qmop.tiny.base import base_path

TALK = [
    {"role": "user", "text": "how many red objects are there ?"},
    {"role": "assistant", "text": "two"},
    {"role": "user", "text": "what is the mood of the picture ?"},
    {"role": "assistant", "text": "warm"},
]


def picture(size: tuple[int, int] = (40, 30), kind: str = "PNG") -> bytes:
    return encoded(np.full((size[1], size[0], 3), 200, np.uint8), kind)


def encoded(levels_HWC: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(levels_HWC).save(buffer, kind)
    return buffer.getvalue()


def micro(*images: bytes | list[bytes] | None) -> MicroBatch:
    """One sample each: with one picture, several or none."""
    several = [[one] if isinstance(one, bytes) else one or [] for one in images]
    samples = [{"id": str(i), "messages": TALK, "image": bool(one)} for i, one in enumerate(several)]
    return MicroBatch(list(range(len(images))), [str(i) for i in range(len(images))], several, samples)


@pytest.fixture(scope="module")
def collate() -> Collator:
    return Collator(tiny_processor(16), seed=3, max_length=64)


def test_labels_are_the_answer_and_its_end_and_nothing_else(collate: Collator) -> None:
    batch = collate(micro(picture()))
    tokenizer = collate.processor.tokenizer
    kept = batch.labels[0][batch.labels[0] != IGNORED]
    assert tokenizer.decode(kept) in ("two </s>", "warm </s>")
    assert batch.targets == 2
    ids = batch.inputs["input_ids"][0]
    assert (ids == collate.processor.image_token_id).sum() == 16
    assert torch.equal(ids[batch.labels[0] != IGNORED], kept)


def test_the_query_is_the_drawn_question_and_never_an_answer(collate: Collator) -> None:
    batch = collate(micro(*[picture()] * 8))
    tokenizer = collate.processor.query_tokenizer
    for row in range(8):
        question, _ = draw_turn(TALK, 3, row)
        assert tokenizer.decode(batch.inputs["query_input_ids"][row], skip_special_tokens=True) == question


def test_turns_depend_on_seed_and_position_alone_and_both_occur() -> None:
    drawn = [draw_turn(TALK, 3, position)[1] for position in range(50)]
    assert drawn == [draw_turn(TALK, 3, position)[1] for position in range(50)]
    assert 10 < drawn.count("two") < 40
    assert drawn != [draw_turn(TALK, 4, position)[1] for position in range(50)]


def test_text_only_rows_sit_beside_rows_with_pictures(collate: Collator) -> None:
    batch = collate(micro(None, picture(), None, picture()))
    assert batch.inputs["image_rows"].tolist() == [1, 3]
    assert batch.inputs["pixel_values"].shape == (2, 3, 96, 96)
    placeholders = (batch.inputs["input_ids"] == collate.processor.image_token_id).sum(1)
    assert placeholders.tolist() == [0, 16, 0, 16]
    assert not batch.dummy


def test_several_pictures_stand_in_front_of_the_question_in_their_order(collate: Collator) -> None:
    first, second, third = (picture((40, 30 + number)) for number in range(3))
    batch = collate(micro([first, second], None, third))
    assert batch.inputs["image_rows"].tolist() == [0, 0, 2]
    assert torch.equal(batch.inputs["pixel_values"], collate.pictures([first, second, third]))
    placeholder = collate.processor.image_token_id
    assert (batch.inputs["input_ids"] == placeholder).sum(1).tolist() == [32, 0, 16]
    question, told = draw_turn(TALK, 3, 0)
    content = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": question}]
    asked = collate.processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    pictures = [Image.open(io.BytesIO(data)) for data in (first, second)]
    whole = collate.processor(images=pictures, text=f"{asked} {told} </s>", return_tensors="pt")["input_ids"][0]
    assert torch.equal(batch.inputs["input_ids"][0][: len(whole)], whole)


@pytest.mark.parametrize("compressor", ["average_pool", "qmop", "recoverable"])
def test_rows_with_one_three_and_no_pictures_lose_the_same_as_each_alone(compressor: str) -> None:
    torch.manual_seed(0)
    model, processor = derive(base_path("tiny"), compressor, 16)
    collate, objective = Collator(processor, seed=3, max_length=96), Objective(model)
    rng = np.random.default_rng(0)
    pictures = [encoded(rng.integers(0, 255, (96, 96, 3), np.uint8)) for _ in range(4)]
    samples = micro(pictures[0], pictures[1:], None)
    whole = collate(samples)
    assert whole.inputs["image_rows"].tolist() == [0, 1, 1, 1]
    for row in range(3):
        alone = collate(MicroBatch(*([column[row]] for column in vars(samples).values())))
        others = torch.arange(3)[:, None] != row
        masked = whole.labels.masked_fill(others, IGNORED)
        with torch.no_grad():
            together, _ = objective(whole.inputs, masked, dummy=whole.dummy)
            single, _ = objective(alone.inputs, alone.labels, dummy=alone.dummy)
        assert together.item() == pytest.approx(single.item(), rel=1e-5)
        assert single.item() > 0.01


def test_prompts_that_leave_no_room_are_left_out_whole_and_counted() -> None:
    """18 tokens stand around the placeholders of the longer question, so two pictures fit and three do not."""
    collate = Collator(tiny_processor(16), seed=3, max_length=54)
    one, two, three = (picture((40 + number, 30)) for number in range(3))
    batch = collate(micro([one, two], [one, two, three], three))
    assert batch.left_out == ("1",)
    assert batch.keys == ("0", "1", "2")
    assert batch.inputs["image_rows"].tolist() == [0, 0, 2]
    assert torch.equal(batch.inputs["pixel_values"], collate.pictures([one, two, three]))
    placeholders = (batch.inputs["input_ids"] == collate.processor.image_token_id).sum(1)
    assert placeholders.tolist() == [32, 0, 16]
    assert (batch.labels != IGNORED).sum(1).tolist() == [2, 0, 2]
    alone = collate(micro([one, two, three]))
    assert (alone.dummy, alone.targets, alone.left_out) == (True, 0, ("0",))
    assert alone.inputs["pixel_values"].shape[0] == 1
    assert alone.inputs["input_ids"].shape[1] <= 54


def test_placeholders_are_never_cut_whatever_the_limit() -> None:
    processor, pictures = tiny_processor(16), [picture()] * 2
    for limit in range(1, 60):
        batch = Collator(processor, seed=3, max_length=limit)(micro(pictures, picture(), None))
        found = int((batch.inputs["input_ids"] == processor.image_token_id).sum())
        assert found == 16 * len(batch.inputs["pixel_values"]) * (not batch.dummy), limit
        assert batch.inputs["input_ids"].shape[1] <= limit
        assert (batch.labels != IGNORED).any(1).sum() == 3 - len(batch.left_out)


def test_a_batch_without_pictures_brings_one_blank(collate: Collator) -> None:
    batch = collate(micro(None, None))
    assert batch.dummy
    assert batch.inputs["pixel_values"].shape[0] == 1
    assert (batch.inputs["input_ids"] == collate.processor.image_token_id).sum() == 0


def test_long_answers_are_cut_at_the_limit(collate: Collator) -> None:
    length = collate(micro(picture())).inputs["input_ids"].shape[1]
    batch = Collator(tiny_processor(16), seed=3, max_length=length - 1)(micro(picture()))
    assert batch.inputs["input_ids"].shape[1] == length - 1
    assert (batch.targets, batch.left_out) == (1, ())


def test_reading_ahead_keeps_order_and_passes_errors_on() -> None:
    assert list(ahead(iter(range(20)), 3)) == list(range(20))

    def broken() -> object:
        yield 1
        raise OSError("gone")

    items = ahead(broken(), 2)  # type: ignore[arg-type]
    assert next(items) == 1
    with pytest.raises(OSError, match="gone"):
        next(items)


def test_a_drawn_budget_changes_placeholders_and_reaches_the_model() -> None:
    collate = Collator(tiny_processor(16), seed=3, max_length=64, budget=lambda position: 4 if position < 2 else 9)
    first, later = collate(micro(picture())), micro(picture())
    later = MicroBatch([2], later.keys, later.images, later.samples)
    for batch, count in ((first, 4), (collate(later), 9)):
        assert batch.inputs["visual_tokens"] == count
        assert (batch.inputs["input_ids"] == collate.processor.image_token_id).sum() == count


def test_a_void_is_made_once_and_not_shared(collate: Collator) -> None:
    first = collate.void()
    first.inputs.pop("pixel_values")
    second = collate.void()
    assert second.inputs["pixel_values"] is collate.void().inputs["pixel_values"]


def test_a_void_looks_like_a_batch_and_counts_for_nothing(collate: Collator) -> None:
    void, real = collate.void(), collate(micro(picture()))
    assert (void.targets, void.tokens, void.positions, void.keys, void.dummy) == (0, 0, (), (), True)
    assert set(void.inputs) == set(real.inputs)
    assert real.tokens == int(real.inputs["attention_mask"].sum()) > 16
    for name, value in void.inputs.items():
        assert value.ndim == real.inputs[name].ndim, name
        assert value.dtype == real.inputs[name].dtype, name
