from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from qmop.compressors.average_pool import AveragePool
from qmop.features import VisualFeatures
from qmop.tiny.pretraining.language import (
    LanguageRecipe,
    LanguageTask,
    Packed,
    Speaker,
    cache_features,
    features_of,
    pack,
    pool,
    positions,
    sight,
)
from qmop.tiny.pretraining.loop import Schedule
from qmop.tiny.pretraining.tower import Towers
from qmop.tiny.pretraining.world import World, make_world, normalise


@pytest.fixture(scope="module")
def speaker() -> Speaker:
    torch.manual_seed(0)
    return Speaker().eval()


@pytest.fixture(scope="module")
def world() -> World:
    return make_world(2, 6)


@pytest.mark.parametrize("tokens", [144, 36, 16])
def test_pooling_is_the_methods_own(tokens: int) -> None:
    patches = torch.randn(2, 144, 8)
    method = AveragePool(width=8, grid=12, tokens=tokens)
    expected = method(VisualFeatures(patches_BNC=patches, grid=(12, 12))).tokens_BMC
    torch.testing.assert_close(pool(patches, tokens), expected)


@pytest.mark.parametrize("captions", [True, False])
def test_answers_are_targets_and_questions_are_not(speaker: Speaker, world: World, *, captions: bool) -> None:
    packed, words = pack(speaker.tokenizer, world.texts[:2], captions=captions), speaker.tokenizer
    for row, texts in enumerate(world.texts[:2]):
        told = packed.ids[row][packed.weights[row] == 1.0].tolist()
        assert told == [i for answer in texts.answers for i in [*answer.tolist(), words.eos_token_id]]
        described = packed.ids[row][packed.weights[row] == 0.25].tolist()
        assert described == ([*texts.caption.tolist(), words.eos_token_id] if captions else [])
        first = packed.ids[row][packed.turns[row] == 1].tolist()
        assert (
            words.decode(first)
            == f"{words.decode(texts.questions[0])} <assistant> {words.decode(texts.answers[0])} </s>"
        )
        assert (packed.turns[row] == 0).sum() == (packed.ids[row] == words.pad_token_id).sum()


def test_turns_see_the_picture_and_themselves_alone() -> None:
    turns = torch.tensor([[1, 1, 2, 2, 0]])
    seen = sight(turns, 3)[0, 0]
    expected = ["11100000"[:8]] * 0 + ["10000000", "11000000", "11100000", "11110000", "11111000"]
    expected += ["11100100", "11100110", "11100001"]
    assert ["".join(str(int(bit)) for bit in row) for row in seen] == expected
    assert positions(turns, 3).tolist() == [[0, 1, 2, 3, 4, 3, 4, 3]]


@torch.no_grad()
def test_a_packed_turn_is_worth_what_it_is_worth_alone(speaker: Speaker, world: World) -> None:
    visual = torch.randn(1, 4, 128)
    packed = pack(speaker.tokenizer, world.texts[:1], captions=True)
    together = speaker.states(visual, packed)[0]
    words, model = speaker.language.get_input_embeddings(), speaker.language.model
    start = words(torch.tensor([[speaker.tokenizer.bos_token_id, speaker.user]]))
    for turn in (1, 3, int(packed.turns.max())):
        here = packed.turns[0] == turn
        joined = torch.cat([start, speaker.connector(visual), words(packed.ids[:, here])], dim=1)
        alone = model(inputs_embeds=joined).last_hidden_state[0, 6:]
        torch.testing.assert_close(together[here], alone, rtol=0, atol=1e-4)


@torch.no_grad()
def test_the_loss_is_the_weighted_cross_entropy_of_the_answers(speaker: Speaker) -> None:
    packed = Packed(
        ids=torch.randint(7, 90, (2, 7)),
        weights=torch.tensor([[0, 0, 1, 1, 0, 0, 1], [0, 0, 0, 0.25, 0.25, 0, 0]]),
        turns=torch.tensor([[1, 1, 1, 1, 2, 2, 2], [1, 1, 1, 1, 1, 0, 0]]),
    )
    visual = torch.randn(2, 4, 128)
    logits = speaker.language.lm_head(speaker.states(visual, packed))
    total = sum(
        packed.weights[row, place] * F.cross_entropy(logits[row, place - 1], packed.ids[row, place])
        for row in range(2)
        for place in range(1, 7)
    )
    torch.testing.assert_close(speaker(visual, packed), total / packed.weights.sum(), rtol=0, atol=1e-5)


def test_features_are_the_towers_and_computed_once(world: World, tmp_path: Path) -> None:
    torch.manual_seed(0)
    towers = Towers().eval()
    features = cache_features(towers, world.pixels, tmp_path / "f.npy", batch=4)
    assert isinstance(features, np.memmap)
    assert (features.shape, features.dtype) == ((6, 144, 128), np.float16)
    with torch.no_grad():
        expected = towers.encode_image(normalise(world.pixels[5:]))[:, 1:]
    torch.testing.assert_close(features_of(features, np.array([5]), 1), expected, rtol=1e-3, atol=1e-3)
    assert features_of(features, slice(0, 2), 2, tokens=16).shape == (2, 16, 128)
    again = cache_features(towers, world.pixels[:1], tmp_path / "f.npy")
    assert np.array_equal(again, features)
    assert not features_of(None, slice(0, 2), 2).any()


def test_phases_and_captions_follow_the_recipe(speaker: Speaker, world: World) -> None:
    features = np.zeros((6, 144, 128), dtype=np.float16)
    recipe = LanguageRecipe(schedule=Schedule(steps=10), phases=((0.5, 36, 3), (0.5, 144, 2)), captions=0.3)
    task = LanguageTask(speaker, features, world, recipe)
    assert [next(iter(task.losses(step))) for step in (0, 4, 5, 9)] == ["language@36"] * 2 + ["language@144"] * 2
    assert task.losses(2) == task.losses(2)
    blind = LanguageTask(speaker, None, world, recipe)
    assert next(iter(blind.losses(0))) == "language@1"
