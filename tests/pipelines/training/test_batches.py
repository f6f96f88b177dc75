import io

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.corpus.micro_batches import MicroBatch
from pipelines.training.batches import Collator, ahead
from qmop.placeholders import IGNORED
from qmop.queries import draw_turn
from qmop.tiny.assemble import tiny_processor

TALK = [
    {"role": "user", "text": "how many red objects are there ?"},
    {"role": "assistant", "text": "two"},
    {"role": "user", "text": "what is the mood of the picture ?"},
    {"role": "assistant", "text": "warm"},
]


def picture(size: tuple[int, int] = (40, 30), kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((size[1], size[0], 3), 200, np.uint8)).save(buffer, kind)
    return buffer.getvalue()


def micro(*images: bytes | None) -> MicroBatch:
    samples = [{"id": str(i), "messages": TALK, "image": image is not None} for i, image in enumerate(images)]
    return MicroBatch(list(range(len(images))), [str(i) for i in range(len(images))], list(images), samples)


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


def test_a_batch_without_pictures_brings_one_blank(collate: Collator) -> None:
    batch = collate(micro(None, None))
    assert batch.dummy
    assert batch.inputs["pixel_values"].shape[0] == 1
    assert (batch.inputs["input_ids"] == collate.processor.image_token_id).sum() == 0


def test_long_answers_are_cut_at_the_limit() -> None:
    short = Collator(tiny_processor(16), seed=3, max_length=20)
    assert short(micro(picture())).inputs["input_ids"].shape[1] == 20


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


def test_a_void_looks_like_a_batch_and_counts_for_nothing(collate: Collator) -> None:
    void, real = collate.void(), collate(micro(picture()))
    assert (void.targets, void.tokens, void.positions, void.keys, void.dummy) == (0, 0, (), (), True)
    assert set(void.inputs) == set(real.inputs)
    assert real.tokens == int(real.inputs["attention_mask"].sum()) > 16
    for name, value in void.inputs.items():
        assert value.ndim == real.inputs[name].ndim, name
        assert value.dtype == real.inputs[name].dtype, name
