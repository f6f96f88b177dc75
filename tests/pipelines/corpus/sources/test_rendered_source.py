"""Rendered samples: questions unpacked, one picture shared by neighbours."""

from __future__ import annotations

from pipelines.corpus.samples import Raw
from pipelines.corpus.sources.rendered import CAPTION_PROMPT, RenderedSource
from qmop.vtcbench.rendered import training_scene


def read_all(source: RenderedSource, per_shard: int) -> list[Raw]:
    found = [raw for unit in source.units(per_shard) for raw in source.read(unit)]
    assert all(isinstance(raw, Raw) for raw in found)
    return [raw for raw in found if isinstance(raw, Raw)]


def test_count_is_in_samples_and_cuts_do_not_change_them() -> None:
    source = RenderedSource(seed=3, count=11, questions_per_scene=3)
    assert read_all(source, 4) == read_all(source, 100)
    assert [raw.position for raw in read_all(source, 4)] == list(range(11))


def test_neighbours_share_a_picture_and_ask_different_things() -> None:
    raws = read_all(RenderedSource(seed=3, count=6, questions_per_scene=3), 6)
    assert raws[0].images == raws[2].images != raws[3].images
    assert len({raw.messages[0]["text"] for raw in raws[:3]}) == 3
    turns = training_scene(3, 0).turns
    assert [raw.messages[1]["text"] for raw in raws[:3]] == [turn.answer for turn in turns[:3]]


def test_a_scene_that_runs_out_of_questions_is_described() -> None:
    raws = read_all(RenderedSource(seed=3, count=20, questions_per_scene=20), 20)
    described = [raw for raw in raws if raw.messages[0]["text"] == CAPTION_PROMPT]
    assert described
    assert {raw.messages[1]["text"] for raw in described} == {training_scene(3, 0).caption}


def test_another_seed_is_another_source() -> None:
    assert RenderedSource(1, 5, 1).fingerprint() != RenderedSource(2, 5, 1).fingerprint()
