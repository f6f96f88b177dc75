"""Shapes of the tiny base: the paper's 24-grid at half scale, so strides 3, 4, 6 and 12 give 16, 9, 4 and 1 tokens.

Vision width 128 and language width 160 differ on purpose: a mistaken width fails at once.
"""

from __future__ import annotations

from transformers import CLIPTextConfig, CLIPVisionConfig, LlamaConfig, PreTrainedTokenizerFast

from qmop.vtcbench.scene import IMAGE_SIZE

PATCH_SIZE = 8
LEVELS = (2, 3, 4, 5)
"""Hidden states that methods with several levels read, TokenPacker above all. The paper's 12, 16, 22 and 23 of 24
layers would be 3, 4, 4 and 5 of six: one twice; these are four different ones that end where the patches come from."""
PROJECTION = 128
QUERY_LENGTH = 77


def vision_config() -> CLIPVisionConfig:
    """Six layers of width 128 over 12 x 12 patches and a class token."""
    return CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=6,
        num_attention_heads=4,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        projection_dim=PROJECTION,
    )


def query_config(tokenizer: PreTrainedTokenizerFast) -> CLIPTextConfig:
    """Three layers of width 128 over at most 77 tokens."""
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=QUERY_LENGTH,
        projection_dim=PROJECTION,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def language_config(tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    """Four Llama layers of width 160."""
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=160,
        intermediate_size=448,
        num_hidden_layers=4,
        num_attention_heads=5,
        num_key_value_heads=5,
        max_position_embeddings=1024,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
    )
