from __future__ import annotations

import numpy as np
import pytest
import torch

from qmop.tiny.assemble import tiny_model
from qmop.tiny.pretraining.discrimination import (
    METHODS,
    ORACLE,
    Seen,
    Tuning,
    bars,
    look,
    oracle,
    reduce,
    scores,
    speaker_of,
)
from qmop.tiny.pretraining.exam import make_exam
from qmop.tiny.pretraining.loop import Schedule, train
from qmop.tiny.pretraining.world import World, make_world, patch_cells
from qmop.vtcbench.rendered import suite


@pytest.fixture(scope="module")
def world() -> World:
    return make_world(1, 6)


@pytest.fixture(scope="module")
def seen(world: World) -> Seen:
    torch.manual_seed(0)
    return look(tiny_model(), world.pixels, batch=4)


def test_the_tower_is_seen_as_the_methods_see_it(seen: Seen) -> None:
    assert (seen.patches.shape, seen.attention.shape) == ((6, 144, 128), (6, 144))
    assert seen.attention.min() > 0
    assert seen.attention.astype(np.float32).sum(axis=1).max() < 1


@pytest.mark.parametrize("way", [*METHODS, ORACLE])
def test_every_way_leaves_its_tokens(seen: Seen, way: str) -> None:
    tokens = reduce(way, 16, seen.rows(slice(0, 2)), [(0,), ()], 0)
    assert tokens.shape == (2, 144 if way == "uncompressed" else 16, 128)


def test_the_oracle_keeps_a_patch_of_every_asked_for_cell_then_more() -> None:
    patches = torch.arange(144.0).view(1, 144, 1).expand(3, -1, 1)
    kept = oracle(patches, [(3, 22), tuple(range(16)), ()], 16, 0)[..., 0].long()
    cells = patch_cells()[kept]
    assert np.bincount(cells[0], minlength=36)[[3, 22]].tolist() == [4, 4]
    assert sorted(cells[1].tolist()) == list(range(16))
    assert all(row.tolist() == sorted(row.tolist()) for row in kept)
    assert not torch.equal(kept[2], oracle(patches, [(3, 22), (), ()], 16, 1)[2, :, 0].long())


@torch.no_grad()
def test_a_speaker_is_taken_out_of_a_model_as_it_is() -> None:
    model = tiny_model()
    speaker = speaker_of(model)
    assert torch.equal(speaker.language.lm_head.weight, model.lm_head.weight)
    assert speaker.language.lm_head.weight is speaker.language.model.embed_tokens.weight
    states = torch.randn(1, 3, 128)
    assert torch.equal(speaker.connector(states), model.model.multi_modal_projector.connector(states))


def test_tuning_shows_every_way_the_same_pairs_and_learns(world: World, seen: Seen) -> None:
    schedule = Schedule(steps=6, learning_rate=1e-3, warmup=1)
    tuning = Tuning(world=world, seen=seen, schedule=schedule, batch=8, tokens=16)
    speaker = speaker_of(tiny_model())
    first = tuning.losses(speaker, ORACLE)(3)[ORACLE].item()
    assert first == tuning.losses(speaker, ORACLE)(3)[ORACLE].item()
    train(speaker, tuning.losses(speaker, ORACLE), schedule, lambda _: None)
    assert tuning.losses(speaker, ORACLE)(3)[ORACLE].item() < first
    exam = make_exam(suite(4, 20), speaker)
    found = scores(speaker, exam, look(tiny_model(), exam.pixels), ORACLE, 16)
    assert {"micro", "GU", "LD", "mark"} <= found.keys()


def test_bars_are_held_or_not() -> None:
    whole = {"GU": 90.0, "SC": 90.0, "RC": 90.0, "SE": 99.0, "LD": 90.0, "micro": 92.0}
    table = {
        "uncompressed": whole,
        "average_pool": {**whole, "LD": 80.0, "SC": 85.0, "RC": 85.0},
        "random_tokens": {**whole, "micro": 77.0},
        "class_attention": {**whole, "micro": 70.0},
        ORACLE: {**whole, "micro": 80.0},
    }
    assert all(bars(table).values())
    worse = {
        **table,
        "average_pool": {**whole, "LD": 80.1, "SC": 85.1, "RC": 85.0},
        "random_tokens": {**whole, "micro": 77.1},
        ORACLE: {**whole, "micro": 79.9},
    }
    assert not any(bars(worse).values())
