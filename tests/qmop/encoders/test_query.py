from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, SiglipTextConfig, SiglipVisionConfig

from qmop.encoders import QueryEncoder
from qmop.tiny.configs import query_config, vision_config
from qmop.tiny.tokenizer import query_tokenizer

QUESTIONS = ["is it red ?", "how many large blue circles are in the picture ?"]
EXACT = {"rtol": 0.0, "atol": 1e-5}


@pytest.fixture(scope="module")
def clip_encoder() -> QueryEncoder:
    torch.manual_seed(3)
    return QueryEncoder(query_config(query_tokenizer()), vision_config()).eval().requires_grad_(requires_grad=False)


@pytest.fixture(scope="module")
def siglip_encoder(siglip_config: SiglipVisionConfig) -> QueryEncoder:
    torch.manual_seed(4)
    return QueryEncoder(siglip_text(), siglip_config).eval().requires_grad_(requires_grad=False)


def siglip_text() -> SiglipTextConfig:
    words = query_tokenizer()
    return SiglipTextConfig(
        vocab_size=len(words),
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=20,
        projection_size=40,
        pad_token_id=words.pad_token_id,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
    )


def questions(texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    batch = query_tokenizer()(texts, padding=True, return_tensors="pt")
    return batch["input_ids"], batch["attention_mask"]


def test_questions_become_projected_end_tokens_whatever_the_padding(clip_encoder: QueryEncoder) -> None:
    query = clip_encoder(*questions(QUESTIONS))
    assert query.last_BE is None
    assert isinstance(clip_encoder.text_tower, CLIPTextModelWithProjection)
    ids, mask = questions(QUESTIONS)
    stock = clip_encoder.text_tower(input_ids=ids, attention_mask=mask).text_embeds
    torch.testing.assert_close(query.text_BE, stock, rtol=0, atol=1e-6)
    for row, question in enumerate(QUESTIONS):
        states = clip_encoder.text_tower.text_model(input_ids=questions([question])[0]).last_hidden_state
        torch.testing.assert_close(query.need("eos_BC")[row], states[0, -1], **EXACT)
        torch.testing.assert_close(query.text_BE[row], clip_encoder.text_tower.text_projection(states[0, -1]), **EXACT)


def test_the_last_position_is_that_of_the_question_padded_to_full_length(clip_encoder: QueryEncoder) -> None:
    words = query_tokenizer()
    found = clip_encoder(*questions(QUESTIONS), last=True).need("last_BE")
    for row, question in enumerate(QUESTIONS):
        ids = words(question)["input_ids"]
        padded = torch.tensor([ids + [words.eos_token_id] * (77 - len(ids))])
        states = clip_encoder.text_tower.text_model(input_ids=padded).last_hidden_state
        assert states.shape[1] == 77
        torch.testing.assert_close(found[row], clip_encoder.text_tower.text_projection(states[0, 76]), **EXACT)
    assert (found - clip_encoder(*questions(QUESTIONS)).text_BE).abs().max() > 1e-3


def test_padding_uses_the_real_end_token_under_a_configuration_of_old() -> None:
    """Published CLIP checkpoints name 2 as their end token, though it has the largest id of the vocabulary."""
    torch.manual_seed(5)
    sizes = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2}
    config = CLIPTextConfig(
        **sizes, num_hidden_layers=1, max_position_embeddings=8, bos_token_id=0, eos_token_id=2, pad_token_id=1
    )
    encoder = QueryEncoder(config, vision_config()).eval()
    ids, mask = torch.tensor([[48, 5, 49, 49]]), torch.tensor([[1, 1, 1, 0]])
    query = encoder(ids, mask, last=True)
    states = encoder.text_tower.text_model(input_ids=torch.tensor([[48, 5, 49, 49, 49, 49, 49, 49]])).last_hidden_state
    torch.testing.assert_close(query.need("last_BE"), encoder.text_tower.text_projection(states[:, -1]), **EXACT)
    torch.testing.assert_close(query.need("eos_BC"), states[:, 2], **EXACT)


def test_segments_average_as_unit_vectors_and_absent_ones_do_not_count(clip_encoder: QueryEncoder) -> None:
    texts = [*QUESTIONS, "which texture ?"]
    ids, mask = questions(texts)
    shape = (2, 2, ids.shape[1])
    cut_ids, cut_mask = torch.zeros(shape, dtype=ids.dtype), torch.zeros(shape, dtype=mask.dtype)
    cut_ids[0], cut_mask[0] = ids[:2], mask[:2]
    cut_ids[1, 0], cut_mask[1, 0] = ids[2], mask[2]
    query = clip_encoder(cut_ids, cut_mask, last=True)
    alone = clip_encoder(ids, mask, last=True)
    unit = F.normalize(alone.text_BE, dim=-1)
    torch.testing.assert_close(query.text_BE, torch.stack([unit[:2].mean(0), unit[2]]), **EXACT)
    eos = alone.need("eos_BC")
    torch.testing.assert_close(query.need("eos_BC"), torch.stack([eos[:2].mean(0), eos[2]]), **EXACT)
    torch.testing.assert_close(query.need("last_BE"), alone.need("last_BE")[[0, 2]], **EXACT)


def test_segments_without_a_mask_are_all_present(clip_encoder: QueryEncoder) -> None:
    ids, _ = questions([QUESTIONS[0]])
    both = clip_encoder(ids.expand(2, -1)[None])
    torch.testing.assert_close(both.text_BE, F.normalize(clip_encoder(ids).text_BE, dim=-1), **EXACT)


def test_siglip_reads_questions_padded_to_full_length_whatever_the_batch(siglip_encoder: QueryEncoder) -> None:
    assert siglip_encoder.visual_projection is None
    words, tower = query_tokenizer(), siglip_encoder.text_tower
    query = siglip_encoder(*questions(QUESTIONS), last=True)
    assert query.text_BE.shape == (2, 40)
    for row, question in enumerate(QUESTIONS):
        ids = words(question)["input_ids"]
        stock = tower(input_ids=torch.tensor([ids + [words.pad_token_id] * (20 - len(ids))]))
        torch.testing.assert_close(query.text_BE[row], stock.pooler_output[0], **EXACT)
        torch.testing.assert_close(query.need("eos_BC")[row], stock.last_hidden_state[0, -1], **EXACT)
        torch.testing.assert_close(query.need("last_BE")[row], stock.pooler_output[0], **EXACT)
    assert (query.text_BE[0] - query.text_BE[1]).abs().max() > 1e-3


def test_questions_longer_than_the_tower_are_refused(siglip_encoder: QueryEncoder) -> None:
    with pytest.raises(ValueError, match="Sequence length must be less than max_position_embeddings"):
        siglip_encoder(torch.ones(1, 21, dtype=torch.long))


def test_a_text_tower_of_an_unknown_family_is_refused() -> None:
    config = CLIPTextConfig(vocab_size=8, hidden_size=8, num_attention_heads=2)
    config.model_type = "bert"
    with pytest.raises(ValueError, match="the text tower is a bert, but only clip_text_model and siglip_text_model"):
        QueryEncoder(config, vision_config())


def test_a_text_tower_of_the_other_family_is_refused(siglip_config: SiglipVisionConfig) -> None:
    said = (
        "the text tower is a siglip_text_model, but the vision tower is a clip_vision_model: .* a siglip_vision_model"
    )
    with pytest.raises(ValueError, match=said):
        QueryEncoder(siglip_text(), vision_config())
    said = "the text tower is a clip_text_model, but the vision tower is a siglip_vision_model: .* a clip_vision_model"
    with pytest.raises(ValueError, match=said):
        QueryEncoder(query_config(query_tokenizer()), siglip_config)
