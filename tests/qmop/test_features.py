from __future__ import annotations

import pickle

import pytest
import torch
from transformers.utils import ModelOutput

from qmop.features import CompressedTokens, Query, VisualFeatures


def features() -> VisualFeatures:
    patches = torch.arange(24.0).view(3, 4, 2)
    return VisualFeatures(patches_BNC=patches, grid=(2, 2), summary_BC=torch.arange(6.0).view(3, 2))


@pytest.mark.parametrize("kind", [VisualFeatures, Query, CompressedTokens])
def test_the_types_are_dicts_and_tuples_for_hooks_that_walk_them(kind: type[ModelOutput]) -> None:
    tensor = torch.ones(1, 2, 2)
    made = kind(tensor)
    assert isinstance(made, dict)
    assert ModelOutput.to_tuple(made) == (tensor,)


def test_absent_fields_are_not_walked() -> None:
    assert list(features()) == ["patches_BNC", "grid", "summary_BC"]
    assert features().cls_attention_BN is None


def test_rows_picks_images_in_the_asked_order_and_keeps_the_grid() -> None:
    picked = features().rows(torch.tensor([2, 0, 2]))
    assert torch.equal(picked.patches_BNC, features().patches_BNC[[2, 0, 2]])
    assert torch.equal(picked.need("summary_BC"), torch.tensor([[4.0, 5.0], [0.0, 1.0], [4.0, 5.0]]))
    assert picked.grid == (2, 2)
    assert picked.text_space_BNE is None


def test_rows_of_a_query() -> None:
    query = Query(text_BE=torch.eye(3), eos_BC=torch.arange(3.0)[:, None])
    picked = query.rows(torch.tensor([1, 1]))
    assert picked.text_BE.tolist() == [[0.0, 1.0, 0.0]] * 2
    assert picked.eos_BC is not None
    assert picked.eos_BC.tolist() == [[1.0], [1.0]]


def test_a_needed_feature_that_is_missing_is_named() -> None:
    with pytest.raises(ValueError, match=r"features\.text_space_BNE is missing"):
        features().need("text_space_BNE")


def test_counts_and_tokens_of_each_image_with_and_without_a_mask() -> None:
    tokens = torch.arange(12.0).view(2, 3, 2)
    whole = CompressedTokens(tokens_BMC=tokens)
    assert whole.counts_B.tolist() == [3, 3]
    assert [len(part) for part in whole.per_image()] == [3, 3]
    ragged = CompressedTokens(tokens_BMC=tokens, mask_BM=torch.tensor([[True, False, True], [False, True, False]]))
    assert ragged.counts_B.tolist() == [2, 1]
    assert torch.equal(ragged.per_image()[0], tokens[0, [0, 2]])
    assert torch.equal(ragged.per_image()[1], tokens[1, [1]])


def test_survives_pickling() -> None:
    copy = pickle.loads(pickle.dumps(features()))
    assert torch.equal(copy.patches_BNC, features().patches_BNC)
    assert copy.grid == (2, 2)
