from __future__ import annotations

import numpy as np
import pytest
import torch

from qmop.tiny.pretraining.loop import Schedule, train
from qmop.tiny.pretraining.tower import TowerRecipe, Towers, TowerTask, gather, relevance_auc, tower_scores, visible
from qmop.tiny.pretraining.world import World, make_world, patch_cells


@pytest.fixture(scope="module")
def world() -> World:
    return make_world(3, 12)


@pytest.fixture
def towers() -> Towers:
    torch.manual_seed(0)
    return Towers().eval()


@torch.no_grad()
def test_both_towers_meet_in_one_space_at_unit_length(towers: Towers) -> None:
    states = towers.encode_image(torch.randn(2, 3, 96, 96))
    last = towers.last_layer(states)
    assert states.shape == last.shape == (2, 145, 128)
    visual, text = towers.project(last), towers.encode_text(["is it red ?", "how many ?"])
    assert visual.shape == (2, 145, 128)
    assert text.shape == (2, 128)
    torch.testing.assert_close(visual.norm(dim=-1), torch.ones(2, 145))
    torch.testing.assert_close(text.norm(dim=-1), torch.ones(2))


@torch.no_grad()
def test_states_are_those_of_the_tower_itself(towers: Towers) -> None:
    pixels = torch.randn(2, 3, 96, 96)
    states = towers.vision(pixels, output_hidden_states=True).hidden_states
    torch.testing.assert_close(towers.encode_image(pixels), states[-2])
    torch.testing.assert_close(towers.last_layer(states[-2]), states[-1])


@torch.no_grad()
def test_ids_and_texts_mean_the_same(towers: Towers) -> None:
    ids = [np.array(towers.tokenizer.encode(text, add_special_tokens=False)) for text in ("is it red ?", "red")]
    torch.testing.assert_close(towers.encode_ids(ids), towers.encode_text(["is it red ?", "red"]))
    batch = towers.tokenizer("red", return_tensors="pt")
    alone = torch.nn.functional.normalize(towers.text(**batch).text_embeds, dim=-1)
    torch.testing.assert_close(towers.encode_ids(ids)[1:], alone, rtol=0, atol=1e-6)
    assert towers.encode_ids([np.full(200, 50)]).shape == (1, 128)


def test_every_cell_with_an_object_is_shown_first() -> None:
    kinds = np.zeros((2, 144), dtype=np.int8)
    kinds[0, patch_cells() == 7] = kinds[0, patch_cells() == 30] = kinds[1, patch_cells() == 0] = 3
    shown = visible(kinds, 5, np.random.default_rng(0))
    assert shown.shape == (2, 20)
    for row, cells in enumerate(({7, 30}, {0})):
        found = patch_cells()[shown[row]]
        assert len(set(found)) == 5
        assert cells <= set(found)
        assert shown[row].tolist() == sorted(shown[row].tolist())


@torch.no_grad()
def test_all_patches_shown_are_the_whole_picture(towers: Towers) -> None:
    pixels = torch.randn(1, 3, 96, 96)
    everything = torch.arange(144)[None]
    torch.testing.assert_close(towers.encode_image(pixels, everything), towers.encode_image(pixels))
    assert torch.equal(
        gather(torch.arange(6.0).view(1, 3, 2), torch.tensor([[2, 0]])), torch.tensor([[[4.0, 5], [0, 1]]])
    )


def test_a_few_steps_learn_colours(world: World, towers: Towers) -> None:
    recipe = TowerRecipe(schedule=Schedule(steps=12, learning_rate=2e-3, warmup=2), batch=8, whole=0.25, text_every=4)
    task = TowerTask(towers, world, recipe)
    first = {name: value.item() for name, value in task.losses(0).items()}
    again = {name: value.item() for name, value in task.losses(0).items()}
    assert first == again
    assert {"contrast", "focus"} <= first.keys()
    assert "contrast" not in task.losses(1)
    train(towers, task.losses, recipe.schedule, lambda _: None)
    assert task.losses(0)["colour"].item() < 0.85 * first["colour"]
    scores = tower_scores(towers, world, np.arange(8))
    assert set(scores) == {"kind", "colour", "detail", "ink", "size", "mood", "texture", "light"}
    assert all(0 <= score <= 1 for score in scores.values())


@torch.no_grad()
def test_relevance_is_the_chance_that_an_asked_for_patch_is_more_alike(
    towers: Towers, monkeypatch: pytest.MonkeyPatch
) -> None:
    likeness = torch.zeros(2, 145, 128)
    likeness[0, 1:, 0] = torch.arange(144.0)
    likeness[1, 1:, 0] = torch.where(torch.from_numpy(patch_cells()) == 7, 1.0, 0.0)
    monkeypatch.setattr(Towers, "project", lambda *_: likeness)
    monkeypatch.setattr(Towers, "encode_ids", lambda *_: torch.eye(128)[:1].expand(2, -1))
    pixels, words = np.zeros((2, 96, 96, 3), dtype=np.uint8), [np.array([50])] * 2
    assert relevance_auc(towers, pixels, words, [(), (7,)]) == 1.0
    last_cell = np.flatnonzero(patch_cells() == 35)
    expected = np.mean([sum(p > o for o in range(144) if o not in last_cell) / 140 for p in last_cell])
    assert relevance_auc(towers, pixels, words, [(35,), ()]) == pytest.approx(expected)
