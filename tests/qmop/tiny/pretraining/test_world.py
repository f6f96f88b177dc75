from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from qmop.tiny.assemble import tiny_processor
from qmop.tiny.pretraining.world import (
    GRID,
    IMAGE_CLASSES,
    PATCH_CLASSES,
    PATCHES,
    PICTURED,
    World,
    focus_mask,
    make_world,
    normalise,
    patch_cells,
    patch_targets,
    short_caption,
)
from qmop.tiny.tokenizer import language_tokenizer
from qmop.vtcbench.draws import Draws
from qmop.vtcbench.rendered import RenderedScene, training_scene
from qmop.vtcbench.words import FACE, NUMBERS, PLACES, TILE


@pytest.fixture(scope="module")
def made() -> list[RenderedScene]:
    return [training_scene(0, place, rounds=2) for place in range(40)]


@pytest.fixture(scope="module")
def world() -> World:
    return make_world(0, 20)


def test_pixels_are_normalised_as_the_shipped_processor_does(made: list[RenderedScene]) -> None:
    pixels = np.stack([scene.pixels for scene in made[:3]])
    images = [Image.fromarray(picture) for picture in pixels]
    shipped = tiny_processor()(images=images, text=["<image>"] * 3, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(normalise(pixels), shipped, rtol=0, atol=1e-5)


def test_patches_are_labelled_by_the_object_in_their_cell(made: list[RenderedScene]) -> None:
    for scene in made:
        targets = patch_targets(scene.scene)
        shown = 0
        for thing in scene.scene.things:
            x, y = thing.centre[0] - thing.shift[0], thing.centre[1] - thing.shift[1]
            half = 16 if thing.large else 8
            patches = [
                row * GRID + column
                for row in range((y - half) // 8, (y + half) // 8)
                for column in range((x - half) // 8, (x + half) // 8)
            ]
            shown += len(patches)
            said = {"kind": thing.kind, "colour": thing.colour, "detail": thing.detail}
            said |= {"ink": thing.ink or "nothing", "size": "large" if thing.large else "small"}
            for name, word in said.items():
                assert {PATCH_CLASSES[name][value] for value in targets[name][patches]} == {word}
        assert all((targets[name] > 0).sum() == shown for name in ("kind", "colour", "detail", "size"))


def test_answers_can_be_read_off_the_dense_targets(made: list[RenderedScene]) -> None:
    checked = 0
    for scene in made:
        targets = patch_targets(scene.scene)
        words = {name: np.array(PATCH_CLASSES[name])[targets[name]] for name in PATCH_CLASSES}
        for turn in scene.turns:
            asked = turn.question.split()
            if turn.task in ("mark", "mark_ink"):
                here = (words["colour"] == asked[-3]) & (words["kind"] == asked[-2])
                assert set(words["detail" if turn.task == "mark" else "ink"][here]) == {turn.answer}
            elif turn.task.startswith("tile"):
                here = (words["colour"] == asked[5]) & (words["kind"] == TILE)
                assert set(words["detail"][here]) == {turn.answer}
            elif turn.task == "feeling":
                assert set(words["detail"][words["kind"] == FACE]) == {turn.answer}
            elif turn.task == "count_colour":
                assert NUMBERS.index(turn.answer) * 4 == (words["colour"] == asked[2]).sum()
            elif turn.task == "place":
                rows, columns = np.divmod(np.flatnonzero(words["kind"] == asked[3]), GRID)
                assert {PLACES[r // 4 * 3 + c // 4] for r, c in zip(rows, columns, strict=True)} == {turn.answer}
            else:
                continue
            checked += 1
    assert checked > 200


def test_targets_stay_below_their_number_of_classes(world: World) -> None:
    for name, classes in PATCH_CLASSES.items():
        assert world.patches[name].shape == (20, PATCHES)
        assert 0 <= world.patches[name].min() <= world.patches[name].max() < len(classes)
    for name, classes in IMAGE_CLASSES.items():
        assert world.images[name].shape == (20,)
        assert 0 <= world.images[name].min() <= world.images[name].max() < len(classes)


def test_a_world_is_its_training_scenes_in_order(world: World) -> None:
    words = language_tokenizer()
    assert len(world) == len(world.texts) == 20
    for row in (0, 7, 19):
        scene = training_scene(0, row, rounds=2)
        assert np.array_equal(world.pixels[row], scene.pixels)
        assert np.array_equal(world.patches["kind"][row], patch_targets(scene.scene)["kind"])
        texts = world.texts[row]
        assert words.decode(texts.caption) == scene.caption
        assert [words.decode(ids) for ids in texts.questions] == [turn.question for turn in scene.turns]
        assert [words.decode(ids) for ids in texts.answers] == [turn.answer for turn in scene.turns]
        assert texts.focus == tuple(turn.focus for turn in scene.turns)


def test_short_captions_fit_the_text_tower(made: list[RenderedScene]) -> None:
    words = language_tokenizer()
    for scene in made:
        text = short_caption(scene.scene, Draws(0, "short"))
        assert text.count(" , ") == PICTURED - 1
        assert len(words.encode(text)) < 75
        assert text.startswith(f"a {scene.scene.ground.mood} ")


def test_focus_marks_the_patches_of_the_asked_for_cells_only() -> None:
    mask = focus_mask([(0,), (35, 7), ()])
    assert mask.shape == (3, PATCHES)
    assert np.flatnonzero(mask[0]).tolist() == [0, 1, 12, 13]
    assert np.flatnonzero(mask[1]).tolist() == [26, 27, 38, 39, 130, 131, 142, 143]
    assert mask[2].sum() == 0
    assert np.bincount(patch_cells()).tolist() == [4] * 36
