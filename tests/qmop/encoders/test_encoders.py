from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock, patch

import pytest
import torch
from transformers import CLIPVisionModel, SiglipVisionModel

from qmop.compressors.base import Reads
from qmop.encoders import QueryEncoder, default_levels, reader_of, visual_features
from qmop.encoders.clip import ClipReader
from qmop.tiny.configs import query_config, vision_config
from qmop.tiny.tokenizer import query_tokenizer
from tests.qmop.encoders.conftest import Declares

FIELDS: dict[Reads, str] = {
    "summary": "summary_BC",
    "class_token": "class_token_BC",
    "cls_attention": "cls_attention_BN",
    "keys": "keys_BNHd",
    "levels": "levels_BNF",
    "text_space": "text_space_BNE",
}
WORK = {"cls_attention": "importance", "keys": "keys", "text_space": "text_space", "class_token": "class_token"}


@pytest.fixture(scope="module")
def encoder() -> QueryEncoder:
    torch.manual_seed(3)
    return QueryEncoder(query_config(query_tokenizer()), vision_config()).eval()


@contextmanager
def watched() -> Iterator[dict[str, Mock]]:
    """The reader's costly methods, counted."""
    with ExitStack() as stack:
        yield {
            name: stack.enter_context(
                patch.object(ClipReader, name, autospec=True, side_effect=getattr(ClipReader, name))
            )
            for name in WORK.values()
        }


def test_the_levels_of_tokenpacker() -> None:
    assert default_levels(24) == (12, 16, 22, 23)
    assert default_levels(6) == (3, 4, 4, 5)
    assert default_levels(27) == (13, 18, 25, 26)


def test_levels_stand_side_by_side_low_to_high(clip: CLIPVisionModel, pixels: torch.Tensor, declares: Declares) -> None:
    states = clip(pixels, output_hidden_states=True).hidden_states
    assert len(states) == 7
    by_default = visual_features(clip, pixels, declares("levels")).need("levels_BNF")
    assert torch.equal(by_default, torch.cat([states[level][:, 1:] for level in (3, 4, 4, 5)], dim=-1))
    named = visual_features(clip, pixels, declares("levels"), levels=[1, -1]).need("levels_BNF")
    assert torch.equal(named, torch.cat([states[1][:, 1:], states[6][:, 1:]], dim=-1))


def test_patches_and_summary_come_from_the_selected_layer(
    clip: CLIPVisionModel, pixels: torch.Tensor, declares: Declares
) -> None:
    states = clip(pixels, output_hidden_states=True).hidden_states
    features = visual_features(clip, pixels, declares("summary"))
    assert features.grid == (12, 12)
    assert torch.equal(features.patches_BNC, states[-2][:, 1:])
    assert torch.equal(features.need("summary_BC"), states[-2][:, 0])
    other = visual_features(clip, pixels, declares("class_token"), layer=-4)
    assert torch.equal(other.patches_BNC, states[-4][:, 1:])
    assert torch.equal(other.need("class_token_BC"), states[-4][:, 0])


def test_attention_and_keys_come_from_the_declared_block_unless_another_is_named(
    clip: CLIPVisionModel, pixels: torch.Tensor, declares: Declares
) -> None:
    reader = reader_of(clip)
    states = reader.states(pixels)
    for declared, named, read in [(-1, None, -1), (-2, None, -2), (-2, 0, 0), (-1, -3, -3)]:
        declaration = declares("cls_attention", "keys", attention_layer=declared, split_heads=False)
        features = visual_features(clip, pixels, declaration, attention_layer=named)
        expected = reader.importance(states, read, split_heads=False)
        assert torch.equal(features.need("cls_attention_BN"), expected)
        assert torch.equal(features.need("keys_BNHd"), reader.keys(states, read))


def test_text_space_is_read_as_declared(
    clip: CLIPVisionModel, pixels: torch.Tensor, declares: Declares, encoder: QueryEncoder
) -> None:
    reader, projection = reader_of(clip), encoder.visual_projection
    states = reader.states(pixels)
    for layer, norm in ((-1, True), (-2, True), (-1, False)):
        declaration = declares("text_space", text_layer=layer, text_norm=norm)
        found = visual_features(clip, pixels, declaration, query_encoder=encoder).need("text_space_BNE")
        assert torch.equal(found, reader.text_space(states, layer, norm=norm, projection=projection))


def test_patches_of_one_family_are_not_mapped_into_the_text_space_of_the_other(
    siglip: SiglipVisionModel, declares: Declares, encoder: QueryEncoder
) -> None:
    pixels = torch.randn(1, 3, 48, 48, generator=torch.Generator().manual_seed(2))
    with pytest.raises(ValueError, match="a clip_text_model, but the vision tower is a siglip_vision_model"):
        visual_features(siglip, pixels, declares("text_space"), query_encoder=encoder)
    assert visual_features(siglip, pixels, declares("summary"), query_encoder=encoder).summary_BC is not None


@pytest.mark.parametrize("read", [None, *FIELDS])
def test_only_what_is_declared_is_computed(
    clip: CLIPVisionModel, pixels: torch.Tensor, declares: Declares, encoder: QueryEncoder, read: Reads | None
) -> None:
    with watched() as work:
        features = visual_features(clip, pixels[:1], declares(*([read] if read else [])), query_encoder=encoder)
    present = {name for name in FIELDS.values() if getattr(features, name) is not None}
    assert present == ({FIELDS[read]} if read else set())
    called = {name for name, call in work.items() if call.called}
    assert called - {"class_token"} == ({WORK[read]} if read in WORK else set()) - {"class_token"}


def test_pictures_of_another_size_get_interpolated_positions(clip: CLIPVisionModel, declares: Declares) -> None:
    wide = torch.randn(1, 3, 64, 160, generator=torch.Generator().manual_seed(2))
    features = visual_features(clip, wide, declares("cls_attention"))
    assert features.grid == (8, 20)
    assert features.patches_BNC.shape == (1, 160, 128)
    assert features.need("cls_attention_BN").shape == (1, 160)


def test_text_space_without_a_text_tower_is_refused(
    clip: CLIPVisionModel, pixels: torch.Tensor, declares: Declares
) -> None:
    with pytest.raises(ValueError, match=r"probe compares patches with the question.*build it with a query_config"):
        visual_features(clip, pixels, declares("text_space"))


def test_a_tower_of_an_unknown_family_is_refused() -> None:
    tower: Any = SimpleNamespace(config=SimpleNamespace(model_type="dinov2"))
    with pytest.raises(ValueError, match="is a dinov2, but only clip_vision_model, siglip_vision_model can be read"):
        reader_of(tower)
