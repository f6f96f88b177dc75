"""What the towers make of pictures and questions: once, and the same as if they looked anew."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from qmop.encoders import visual_features
from qmop.loading import derive
from qmop.modeling_qmop import QMoPForConditionalGeneration
from qmop.processing_qmop import QMoPProcessor
from qmop.tiny.base import base_path
from qmop.tiny.comparison import sights
from qmop.tiny.comparison.material import Material, _suite_path
from qmop.tiny.comparison.rows import ROWS
from qmop.tiny.comparison.sights import Sights
from qmop.views import View, view_of
from qmop.vtcbench.suite import read_shard
from tests.qmop.tiny.comparison.conftest import SEEN, SETTINGS

PIXELS = np.random.default_rng(1).integers(0, 256, (23, 96, 96, 3), dtype=np.uint8)
HALF = 2**-11
"""Half precision keeps eleven bits."""


@cache
def built(name: str) -> tuple[QMoPForConditionalGeneration, QMoPProcessor]:
    row = ROWS[name]
    return derive(base_path("tiny"), row.method, 16, row.options)


def pictures(material: Material, work: Path) -> list[Image.Image]:
    folder = _suite_path(SETTINGS, work)
    drawn = [rendered for shard in material.suite.shards for rendered in read_shard(folder, shard)]
    return [Image.open(io.BytesIO(rendered.image)) for rendered in drawn]


@pytest.mark.parametrize("name", SEEN)
@torch.no_grad()
def test_what_is_kept_is_what_the_tower_sees(name: str, material: Material, work: Path) -> None:
    (model, processor), rows = built(name), np.array([31, 4, 4, 17])
    pixels = processor.image_processor(pictures(material, work), return_tensors="pt")["pixel_values"][rows]
    projector = model.model.multi_modal_projector
    direct = visual_features(
        model.model.vision_tower,
        projector.compressor.picture(pixels, 8),
        projector.declaration,
        layer=model.config.vision_feature_layer,
        levels=model.config.feature_levels,
        query_encoder=model.model.query_encoder,
    )
    found = material.exam.sights.rows(view_of(model.config), rows)
    assert found.grid == direct.grid == ((4, 4) if name == "downsample" else (12, 12))
    assert set(found) == set(direct)
    for field in set(direct) - {"grid"}:
        assert found[field].dtype == torch.float32
        torch.testing.assert_close(found[field], direct[field], rtol=HALF, atol=1e-5)
    assert not torch.equal(found.patches_BNC[0], found.patches_BNC[1])
    assert torch.equal(found.patches_BNC[1], found.patches_BNC[2])


def view(name: str) -> View:
    return view_of(built(name)[0].config)


@contextmanager
def passes(name: str = "qmop") -> Iterator[list[int]]:
    """The sizes of the batches that go through the tower."""
    seen: list[int] = []
    tower = built(name)[0].model.vision_tower
    hook = tower.register_forward_hook(lambda _, args, __: seen.append(len(args[0])))
    yield seen
    hook.remove()


def see(kept: Sights, *names: str, pixels: Callable[[], np.ndarray] = lambda: PIXELS) -> list[str]:
    """Let the tower look for some rows; what was said."""
    said: list[str] = []
    kept.see(built("qmop")[0], [view(name) for name in names], lambda shown: shown, pixels, said.append)
    return said


def written(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.rglob("*.npy")}


def test_one_pass_serves_all_and_only_what_is_missing_is_added(tmp_path: Path) -> None:
    kept = Sights(tmp_path)
    with passes() as seen:
        assert see(kept, "qmop", "prune") == ["tower: picture 0 of 23"]
        assert seen == [23]
        first = written(tmp_path)
        assert see(kept, "qmop", "prune", pixels=lambda: pytest.fail("asked for pictures")) == []
        see(kept, "prune", "tokenpacker")
        assert seen == [23, 23]
    more = written(tmp_path)
    assert [name.split("@")[0] for name in more.keys() - first.keys()] == ["levels"]
    assert {name: more[name] for name in first} == first
    assert list(tmp_path.rglob("*.draft")) == []


def test_the_batches_of_the_tower_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    see(Sights(tmp_path / "whole"), "qmop")
    monkeypatch.setattr(sights, "_BATCH", 10)
    with passes() as seen:
        assert see(Sights(tmp_path / "parts"), "qmop") == ["tower: picture 0 of 23"]
    assert seen == [10, 10, 3]
    whole, parts = (Sights(tmp_path / name).rows(view("qmop"), slice(None)) for name in ("whole", "parts"))
    for field in ("patches_BNC", "summary_BC", "cls_attention_BN", "text_space_BNE"):
        assert len(parts[field]) == 23
        torch.testing.assert_close(parts[field], whole[field], rtol=2 * HALF, atol=1e-5)


def test_a_pass_that_was_cut_short_leaves_nothing_that_is_taken_for_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sights, "_BATCH", 10)

    def stop(_: torch.nn.Module, args: tuple[torch.Tensor]) -> None:
        if len(args[0]) == 3:
            raise KeyboardInterrupt

    hook = built("qmop")[0].model.vision_tower.register_forward_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        see(Sights(tmp_path), "qmop")
    hook.remove()
    assert written(tmp_path) == {}
    see(Sights(tmp_path), "qmop")
    see(Sights(tmp_path / "undisturbed"), "qmop")
    cut, whole = (Sights(folder).rows(view("qmop"), slice(None)) for folder in (tmp_path, tmp_path / "undisturbed"))
    assert torch.equal(cut.patches_BNC, whole.patches_BNC)


def test_methods_that_change_the_picture_have_a_folder_each(tmp_path: Path) -> None:
    kept = Sights(tmp_path)
    small, smaller = (view_of(derive(base_path("tiny"), "downsample", tokens)[0].config) for tokens in (36, 16))
    assert len({kept._path(one, "patches@-2").parent for one in (small, smaller, view("qmop"))}) == 3
    assert kept._path(view("qmop"), "patches@-2") == kept._path(view("tokenpacker"), "patches@-2")


@torch.no_grad()
def test_questions_are_read_as_the_model_reads_them(material: Material) -> None:
    model, processor = built("qmop")
    asked = [material.items[place] for place in (7, 30, 7)]
    inputs = processor.query_inputs([item.question for item in asked])
    encoder = model.model.query_encoder
    assert encoder is not None
    direct = encoder(inputs["query_input_ids"], inputs["query_attention_mask"], last=True)
    found = material.exam.questions.rows([material.exam.by_picture[place][0].question for place in (7, 30, 7)])
    for field in ("text_BE", "eos_BC", "last_BE"):
        torch.testing.assert_close(found[field], direct[field], rtol=0, atol=2e-5)
    assert (found.text_BE[0] - found.text_BE[1]).abs().max() > 0.01


def test_equal_questions_are_read_once(material: Material) -> None:
    everything = [row for pairs in (material.train, material.exam) for row in pairs.by_picture]
    asked = [pair.question.tobytes() for row in everything for pair in row]
    assert len(material.train.questions._query.text_BE) == len(set(asked)) < len(asked)
