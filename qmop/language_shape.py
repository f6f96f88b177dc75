"""What tokens cost a language model, multiply-accumulates and cached bytes, in closed form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class LanguageShape:
    """The sizes of a decoder with gated feed-forward layers (Llama, Vicuna, Qwen, Mistral) that decide its cost.

    Attributes:
        layers: L.
        width: D.
        inner: F, the width inside a feed-forward layer.
        heads: attention heads.
        key_heads: heads of keys and values, fewer than `heads` where they are shared (GQA).
        head_width: width of one head.
    """

    layers: int
    width: int
    inner: int
    heads: int
    key_heads: int
    head_width: int

    @classmethod
    def of(cls, config: Any) -> LanguageShape:
        """The shape of a transformers text configuration."""
        heads = config.num_attention_heads
        return cls(
            layers=config.num_hidden_layers,
            width=config.hidden_size,
            inner=config.intermediate_size,
            heads=heads,
            key_heads=getattr(config, "num_key_value_heads", None) or heads,
            head_width=getattr(config, "head_dim", None) or config.hidden_size // heads,
        )

    def layer_macs(self, tokens: int) -> int:
        """MACs of one layer over that many tokens."""
        projections = 2 * self.width * self.head_width * (self.heads + self.key_heads)
        linear = projections + 3 * self.width * self.inner
        return linear * tokens + 2 * tokens**2 * self.heads * self.head_width

    def macs(self, tokens: int) -> int:
        """MACs of all layers; without shared heads the paper's L(4D^2 + 3DF)M + 2M^2DL (Table 6)."""
        return self.layers * self.layer_macs(tokens)

    def layer_kv_bytes(self, tokens: int, bytes_each: int = 2) -> int:
        """Bytes of one layer's cached keys and values, in half precision unless told otherwise."""
        return 2 * self.key_heads * self.head_width * bytes_each * tokens

    def kv_bytes(self, tokens: int, bytes_each: int = 2) -> int:
        """Bytes of all layers' cached keys and values (Table 6)."""
        return self.layers * self.layer_kv_bytes(tokens, bytes_each)


VICUNA_7B = LanguageShape(layers=32, width=4096, inner=11008, heads=32, key_heads=32, head_width=128)
"""The language model of LLaVA-1.5-7B."""
