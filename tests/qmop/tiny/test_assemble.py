from __future__ import annotations

from pathlib import Path

import pytest
import torch

from qmop.loading import load
from qmop.tiny.assemble import assemble, save_half, tiny_config, tiny_model, tiny_processor
from qmop.tiny.pretraining.language import Speaker
from qmop.tiny.pretraining.tower import Towers
from qmop.tiny.pretraining.world import normalise
from qmop.vtcbench.rendered import training_scene


@pytest.fixture(scope="module")
def parts() -> tuple[Towers, Speaker]:
    torch.manual_seed(0)
    return Towers().eval(), Speaker().eval()


@torch.no_grad()
def test_assembled_parts_say_what_they_said_alone(parts: tuple[Towers, Speaker]) -> None:
    towers, speaker = parts
    scene, processor = training_scene(1, 0), tiny_processor()
    text = "<s><user><image> is it red ? <assistant>"
    batch = processor(images=[scene.pixels], text=text, query="is it red ?", return_tensors="pt")
    logits = assemble(towers, speaker)(**batch).logits
    patches = towers.encode_image(normalise(scene.pixels[None]))
    ids = torch.tensor([speaker.tokenizer(text.replace("<image>", ""))["input_ids"]])
    words = speaker.language.get_input_embeddings()(ids)
    joined = torch.cat([words[:, :2], speaker.connector(patches[:, 1:]), words[:, 2:]], dim=1)
    torch.testing.assert_close(logits, speaker.language(inputs_embeds=joined).logits, rtol=0, atol=1e-4)


@torch.no_grad()
def test_the_text_tower_and_its_map_are_taken_too(parts: tuple[Towers, Speaker]) -> None:
    towers, speaker = parts
    encoder = assemble(towers, speaker).model.query_encoder
    assert encoder is not None
    ids = towers.tokenizer("is it red ?", return_tensors="pt")
    ours = torch.nn.functional.normalize(encoder(**ids).text_BE, dim=-1)
    torch.testing.assert_close(ours, towers.encode_text(["is it red ?"]), rtol=0, atol=1e-6)
    assert torch.equal(encoder.visual_projection.weight, towers.visual_projection.weight)


@torch.no_grad()
def test_a_blind_model_gets_one_blank_token(parts: tuple[Towers, Speaker]) -> None:
    model = assemble(*parts, blind=True)
    projector = model.model.multi_modal_projector
    assert projector.token_count() == 1
    assert not any(value.any() for value in projector.compressor.parameters())
    processor = tiny_processor(1)
    logits = [
        model(
            **processor(images=[training_scene(1, place).pixels], text="<image> is it red ?", return_tensors="pt")
        ).logits
        for place in (0, 1)
    ]
    assert torch.equal(*logits)


def test_the_model_shares_its_embedding_with_its_head() -> None:
    model = tiny_model()
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert sum(p.numel() for p in model.parameters()) * 2 < 12e6  # bytes in half precision


def test_generation_knows_the_special_tokens() -> None:
    settings, words = tiny_model().generation_config, tiny_processor().tokenizer
    assert (settings.eos_token_id, settings.pad_token_id, settings.bos_token_id) == (
        words.eos_token_id,
        words.pad_token_id,
        words.bos_token_id,
    )


def test_options_reach_the_compressor() -> None:
    config = tiny_config("prune", 16, lam=0.25)
    assert (config.compressor, config.compressor_tokens, config.compressor_options) == ("prune", 16, {"lam": 0.25})
    assert tiny_model("prune", 16, lam=0.25).model.multi_modal_projector.compressor.lam == 0.25


def test_the_saved_half_is_half_as_large_and_the_model_stays_whole(tmp_path: Path) -> None:
    model = tiny_model("average_pool", 16)
    count = sum(p.numel() for p in model.parameters())
    save_half(model, tiny_processor(16), tmp_path)
    assert model.dtype == torch.float32
    assert 2 * count < (tmp_path / "model.safetensors").stat().st_size < 2 * count + 40_000
    again, processor = load(tmp_path)
    assert processor.visual_tokens == 16
    halved = {name: value.half().float() for name, value in model.state_dict().items()}
    assert all(torch.equal(value, halved[name]) for name, value in again.state_dict().items())
