from __future__ import annotations

import pytest
import torch

from qmop.placeholders import IGNORED, drop, surplus

IMG, PAD = 9, 0
IDS = torch.tensor([[PAD, 1, IMG, IMG, IMG, 2, 3], [4, IMG, IMG, IMG, IMG, IMG, IMG], [PAD, PAD, PAD, PAD, 5, 6, 7]])
MASK = torch.tensor([[0, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 1, 1, 1]])


def test_the_surplus_is_the_end_of_each_images_run() -> None:
    found = surplus(IDS, IMG, torch.tensor([1, 2, 3]))  # images: one in row 0, two in row 1, none in row 2
    expected = torch.zeros_like(IDS, dtype=torch.bool)
    expected[0, 3:5] = True
    expected[1, 3] = True
    assert torch.equal(found, expected)
    assert not surplus(IDS, IMG, torch.tensor([3, 3, 3])).any()


def test_rows_are_closed_up_and_padded_on_the_left() -> None:
    labels = torch.where(MASK.bool() & (IDS != IMG), IDS, IGNORED)
    prompt = drop(IDS, MASK, surplus(IDS, IMG, torch.tensor([1, 2, 3])), pad=PAD, labels=labels)
    assert prompt.input_ids.tolist() == [[0, 0, 1, IMG, 2, 3], [4, IMG, IMG, IMG, IMG, IMG], [0, 0, 0, 5, 6, 7]]
    assert prompt.attention_mask.tolist() == [[0, 0, 1, 1, 1, 1], [1] * 6, [0, 0, 0, 1, 1, 1]]
    assert prompt.position_ids.tolist() == [[0, 0, 0, 1, 2, 3], [0, 1, 2, 3, 4, 5], [0, 0, 0, 0, 1, 2]]
    assert prompt.labels is not None
    assert prompt.labels.tolist() == [
        [IGNORED, IGNORED, 1, IGNORED, 2, 3],
        [4, *[IGNORED] * 5],
        [IGNORED, IGNORED, IGNORED, 5, 6, 7],
    ]


def test_fitted_prompts_are_fitted() -> None:
    counts = torch.tensor([1, 2, 3])
    once = drop(IDS, MASK, surplus(IDS, IMG, counts), pad=PAD).input_ids
    assert not surplus(once, IMG, counts).any()


def test_padding_on_the_right_moves_to_the_left() -> None:
    ids = torch.tensor([[1, IMG, IMG, 2], [3, 4, PAD, PAD]])
    prompt = drop(ids, (ids != PAD).int(), surplus(ids, IMG, torch.tensor([1])), pad=PAD)
    assert prompt.input_ids.tolist() == [[1, IMG, 2], [PAD, 3, 4]]
    assert prompt.labels is None


def test_without_a_mask_everything_is_real() -> None:
    ids = torch.tensor([[1, IMG, IMG, 2]])
    assert drop(ids, None, surplus(ids, IMG, torch.tensor([1])), pad=PAD).attention_mask.tolist() == [[1, 1, 1]]


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        ([1, 1], "9 image placeholders for 2 images"),
        ([], "9 image placeholders for 0 images"),
        ([4, 1, 1], "3 placeholders per image, but the model keeps 4 tokens: use the processor that was saved"),
    ],
)
def test_placeholders_that_cannot_fit_are_refused(counts: list[int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        surplus(IDS, IMG, torch.tensor(counts))


def test_more_placeholders_than_the_processor_writes_are_named() -> None:
    ids, counts = torch.tensor([[1, *[IMG] * 6]]), torch.tensor([2, 2])
    assert int(surplus(ids, IMG, counts, most=3).sum()) == 2
    with pytest.raises(ValueError, match=r"have 3 placeholders per image, but the model keeps at most 2 tokens: use"):
        surplus(ids, IMG, counts, most=2)
    assert not surplus(ids[:, :5], IMG, counts, most=1).any()  # fitted before
