from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from qmop.compressors.average_pool import AveragePool
from qmop.features import VisualFeatures
from qmop.tiny.pretraining.language import Speaker, conversation, pool
from qmop.vtcbench.rendered import training_scene


@pytest.fixture(scope="module")
def speaker() -> Speaker:
    torch.manual_seed(0)
    return Speaker().eval()


@pytest.mark.parametrize("tokens", [144, 36, 16])
def test_pooling_is_the_methods_own(tokens: int) -> None:
    patches = torch.randn(2, 144, 8)
    method = AveragePool(width=8, grid=12, tokens=tokens)
    expected = method(VisualFeatures(patches_BNC=patches, grid=(12, 12))).tokens_BMC
    torch.testing.assert_close(pool(patches, tokens), expected)


@pytest.mark.parametrize("captions", [True, False])
def test_answers_are_targets_and_questions_are_not(speaker: Speaker, *, captions: bool) -> None:
    scene, words = training_scene(2, 0), speaker.tokenizer
    ids, weights = conversation(words, scene, captions=captions)
    assert len(ids) == len(weights)
    told = [i for i, weight in zip(ids, weights, strict=True) if weight == 1.0]
    assert told == [i for turn in scene.turns for i in words.encode(f"{turn.answer} </s>")]
    described = [i for i, weight in zip(ids, weights, strict=True) if weight == 0.25]
    assert described == (words.encode(f"{scene.caption} </s>") if captions else [])
    assert (words.convert_tokens_to_ids("<user>"), ids[0]) == (ids[1], words.bos_token_id)


@torch.no_grad()
def test_the_loss_is_the_weighted_cross_entropy_of_what_follows(speaker: Speaker) -> None:
    ids, weights = torch.randint(7, 90, (2, 9)), torch.rand(2, 9)
    weights[:, :2] = 0.0
    visual = torch.randn(2, 4, 128)
    words = speaker.language.get_input_embeddings()(ids)
    joined = torch.cat([words[:, :2], speaker.connector(visual), words[:, 2:]], dim=1)
    logits = speaker.language(inputs_embeds=joined).logits
    total = torch.zeros(())
    for row in range(2):
        for place in range(2, 9):
            before = place + 4 - 1  # four visual tokens stand after the second word
            total += weights[row, place] * F.cross_entropy(logits[row, before], ids[row, place])
    torch.testing.assert_close(speaker(visual, ids, weights), total / weights.sum(), rtol=0, atol=1e-5)
