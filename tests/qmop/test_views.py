"""What methods read off a tower: by names that say all it depends on, in one pass for all of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from qmop.configuration_qmop import QMoPConfig
from qmop.encoders import visual_features
from qmop.modeling_qmop import QMoPForConditionalGeneration
from qmop.tiny.assemble import tiny_config, tiny_model
from qmop.views import View, as_features, look, together, view_of

METHODS = ("qmop", "visionzip", "tokenpacker", "cdpruner", "average_pool", "prumerge")


def view(name: str, tokens: int = 16, **options: object) -> View:
    return view_of(tiny_config(name, tokens, **options))


def changed(name: str, **fields: Any) -> View:
    return view_of(QMoPConfig.from_dict({**tiny_config(name, 16).to_dict(), **fields}))


@pytest.fixture(scope="module")
def model() -> QMoPForConditionalGeneration:
    torch.manual_seed(4)
    return tiny_model()


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    return torch.randn(3, 3, 96, 96, generator=torch.Generator().manual_seed(5))


def test_a_method_reads_what_it_declares_and_always_patches() -> None:
    assert view("average_pool").names == {"patches_BNC": "patches@-2"}
    assert view("tokenpacker").names.keys() == {"patches_BNC", "levels_BNF"}
    assert view("qmop").names.keys() == {"patches_BNC", "summary_BC", "cls_attention_BN", "text_space_BNE"}
    for name in METHODS:
        fields = {"patches_BNC", *view(name).names}
        assert len(set(view(name).names.values())) == len(fields)


def test_equal_values_have_equal_names_and_others_have_others() -> None:
    mine, other = view("qmop").names, changed("prune", vision_feature_layer=-3).names
    assert view("prune").names.items() <= mine.items()
    assert other["patches_BNC"] == "patches@-3" != mine["patches_BNC"]
    assert changed("prune", importance_layer=2).names["cls_attention_BN"] != mine["cls_attention_BN"]
    assert changed("tokenpacker", feature_levels=[1, 2, 3, 4]).names != view("tokenpacker").names
    split, whole = (replace(view("prune"), declaration=one) for one in _heads(view("prune")))
    assert split.names["cls_attention_BN"] != whole.names["cls_attention_BN"]
    assert split.names["patches_BNC"] == whole.names["patches_BNC"]


def _heads(one: View) -> list[Any]:
    return [replace(one.declaration, split_heads=split) for split in (True, False)]


def test_only_methods_that_change_the_picture_say_how() -> None:
    assert {view(name).shown for name in METHODS} == {""}
    assert len({view("downsample", tokens).shown for tokens in (4, 16, 36)} - {""}) == 3


def test_a_pass_serves_those_that_show_the_same_tower_the_same_pictures() -> None:
    own, small = view("qmop"), view("downsample")
    foreign = replace(view("prune"), tower="another")
    assert together(own, [small, view("prune"), foreign, own, view("prune")]) == (own, view("prune"))
    assert together(small, [own, view("downsample", 36), small]) == (small,)


def test_without_a_text_tower_nothing_is_mapped_into_its_space() -> None:
    assert view("qmop").names.keys() - view("qmop").without_text().names.keys() == {"text_space_BNE"}
    assert view("tokenpacker").without_text() == view("tokenpacker")


@torch.no_grad()
def test_one_pass_gives_each_method_what_it_would_see_alone(
    model: QMoPForConditionalGeneration, pixels: torch.Tensor
) -> None:
    views, tower, passes = [view(name) for name in METHODS], model.model.vision_tower, []
    hook = tower.register_forward_hook(lambda *_: passes.append(1))
    found = look(tower, pixels, views, model.model.query_encoder)
    hook.remove()
    assert passes == [1]
    assert found.keys() == {name for one in views for name in one.names.values()}
    for one in views:
        alone = visual_features(
            tower, pixels, one.declaration, levels=list(one.levels or ()), query_encoder=model.model.query_encoder
        )
        seen = as_features(one, found, (12, 12))
        assert seen.grid == (12, 12)
        assert set(seen) == {*one.names, "grid"} == set(alone)
        for field in one.names:
            assert torch.equal(seen[field], alone[field])


@torch.no_grad()
def test_a_pass_reads_the_layers_that_are_asked_for(model: QMoPForConditionalGeneration, pixels: torch.Tensor) -> None:
    tower = model.model.vision_tower
    found = look(tower, pixels, [view("average_pool"), changed("average_pool", vision_feature_layer=-3)], None)
    states = tower(pixels, output_hidden_states=True).hidden_states
    assert torch.equal(found["patches@-2"], states[-2][:, 1:])
    assert torch.equal(found["patches@-3"], states[-3][:, 1:])


def test_a_budget_that_does_not_suit_is_refused() -> None:
    with pytest.raises(ValueError, match="tokens is 15, but downsample makes a square map"):
        view("downsample", 15)
