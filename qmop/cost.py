"""What a model costs in multiply-accumulates and cached bytes, known without running it at full size.

The paper prints multiply-accumulates (MACs) and calls them FLOPs; so these are MACs, half of the usual FLOPs, by the
rules of `qmop.mac_counter`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModel, CLIPTextConfig, CLIPVisionConfig, LlamaConfig, LlavaConfig

from qmop.compressors.base import ASKS
from qmop.compressors.mixture import Mixture
from qmop.compressors.projector import Projector, projector_spec
from qmop.configuration_qmop import QMoPConfig
from qmop.encoders import QueryEncoder, visual_features
from qmop.features import Query, VisualFeatures
from qmop.language_shape import VICUNA_7B, LanguageShape
from qmop.mac_counter import macs_of

QUESTION_TOKENS = 51
"""Average length of a question in the paper's data, by its Table 7."""


_PARTS = ("vision", "reading", "question", "projector", "language")


@dataclass(frozen=True, kw_only=True)
class Cost:
    """One image with one question; MACs unless the name says otherwise.

    Attributes:
        method: name of the compressor.
        visual_tokens: what enters the language model of the image, at most.
        parameters: of the projector.
        vision: the vision tower.
        reading: what the method reads beyond the tower's pass, such as class attention or patches in text space.
        question: the text tower (or the language model) over the question, where the method reads it.
        projector: compressor and connector.
        language: the language model over the visual tokens alone, as in the paper's Table 6.
        kv_bytes: of the visual tokens, in half precision.
    """

    method: str
    visual_tokens: int
    parameters: int
    vision: int
    reading: int
    question: int
    projector: int
    language: int
    kv_bytes: int

    @property
    def own(self) -> int:
        """What the method adds to the towers and the language model: reading and projector (Table 7)."""
        return self.reading + self.projector

    def markdown(self) -> str:
        """A table of one row per part."""
        macs = {part: getattr(self, part) / 1e9 for part in _PARTS}
        lines = [f"| {self.method}, {self.visual_tokens} tokens | |", "|---|---|"]
        lines += [f"| {name} | {value:,.2f} GMAC |" for name, value in macs.items()]
        lines += [f"| KV cache | {self.kv_bytes / 1e6:,.1f} MB |", f"| parameters | {self.parameters:,} |"]
        return "\n".join(lines) + "\n"


def cost_of(
    config: LlavaConfig,
    *,
    projector: Projector | None = None,
    query_config: Any = None,
    question_tokens: int = QUESTION_TOKENS,
) -> Cost:
    """The cost of a model by its configuration; towers are counted without weights, so size does not matter.

    Args:
        config: of ours, or of a stock LLaVA.
        projector: counted instead of the one that the configuration names. A mixture that the configuration names
            is counted with all its branches, which is the most that it can run; one that is passed, as it is set.
        query_config: of the text tower, where the configuration names none and the method reads the question
            (`Compression.query_config` of an attached one).
        question_tokens: length of the question, where the method reads it.

    Raises:
        ValueError: if the method does not suit the towers, or the question has no tokens.
    """
    if question_tokens < 1:
        raise ValueError(f"question_tokens is {question_tokens}, but a question has words: choose 1 or more")
    config = _ours(config, query_config)
    if projector is not None:
        if config.query_config is None and ASKS & projector.declaration.reads:
            raise ValueError(
                f"query_config is missing, but {projector.declaration.name} reads the question: pass that of the text "
                "tower, such as query_config=handle.query_config"
            )
        return _count(config, projector, question_tokens)
    with torch.random.fork_rng(devices=[]):  # the caller's random numbers stay where they were
        torch.default_generator.manual_seed(0)
        try:
            return _count(config, _named(config, "meta"), question_tokens)
        except RuntimeError:  # what depends on numbers can only be counted with some
            return _count(config, _named(config, "cpu"), question_tokens)


def _named(config: QMoPConfig, device: str) -> Projector:
    """The projector that a configuration names, with every branch running."""
    with torch.device(device):
        projector = projector_spec(config).build().eval()
    if isinstance(projector.compressor, Mixture) and projector.compressor.select != "equal":  # there all run already
        projector.compressor.select = "all"
    return projector


def _count(config: QMoPConfig, projector: Projector, question_tokens: int) -> Cost:
    shape = LanguageShape.of(config.text_config)
    per_layer = _seen_by_layer(projector, shape.layers)
    vision, reading, features = _count_vision(config, projector)
    question, query = _count_question(config, projector, question_tokens)
    return Cost(
        method=projector.declaration.name,
        visual_tokens=projector.token_count(),
        parameters=sum(parameter.numel() for parameter in projector.parameters()),
        vision=vision,
        reading=reading,
        question=question,
        projector=projector_macs(projector, features, query),
        language=sum(map(shape.layer_macs, per_layer)),
        kv_bytes=sum(map(shape.layer_kv_bytes, per_layer)),
    )


def _seen_by_layer(projector: Projector, layers: int) -> list[int]:
    """Visual tokens in each layer of the language model; a method inside it keeps its budget after `layer` layers."""
    tokens, method = projector.token_count(), projector.compressor
    if method.declaration.acts == "pre_llm":
        return [tokens] * layers
    whole = min(int(getattr(method, "layer", 0)), layers)
    return [tokens] * whole + [method.tokens] * (layers - whole)


def projector_macs(projector: Projector, features: VisualFeatures, query: Query | None = None) -> int:
    """MACs of compressor and connector over these very features; a mixture runs the branches that it chooses."""
    with torch.inference_mode():
        return macs_of(lambda: projector(features, query))


def llava_config(compressor: str = "mlp", tokens: int | None = None, **options: Any) -> QMoPConfig:
    """The configuration of LLaVA-1.5-7B over CLIP ViT-L/14-336 and its text tower, with any compressor."""
    return QMoPConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=1024,
            intermediate_size=4096,
            num_hidden_layers=24,
            num_attention_heads=16,
            image_size=336,
            patch_size=14,
            projection_dim=768,
        ),
        query_config=CLIPTextConfig(
            hidden_size=768,
            intermediate_size=3072,
            num_hidden_layers=12,
            num_attention_heads=12,
            max_position_embeddings=77,
            projection_dim=768,
        ),
        text_config=LlamaConfig(
            vocab_size=32064,
            hidden_size=VICUNA_7B.width,
            intermediate_size=VICUNA_7B.inner,
            num_hidden_layers=VICUNA_7B.layers,
            num_attention_heads=VICUNA_7B.heads,
            max_position_embeddings=4096,
            rms_norm_eps=1e-5,
        ),
        image_token_index=32000,
        compressor=compressor,
        compressor_tokens=tokens,
        compressor_options=options,
    )


def _ours(config: LlavaConfig, query_config: Any) -> QMoPConfig:
    """The configuration as one of ours, with the text tower that is to be counted."""
    if isinstance(config, QMoPConfig) and query_config is None:
        return config
    ours = QMoPConfig.from_dict({**config.to_dict(), "model_type": QMoPConfig.model_type})
    if query_config is not None:
        ours.query_config = query_config
    return ours


@torch.inference_mode()
def _count_vision(config: QMoPConfig, projector: Projector) -> tuple[int, int, VisualFeatures]:
    """The tower's MACs, those of reading it, and random features of the shapes that it gives."""
    side, patch = config.vision_config.image_size, config.vision_config.patch_size
    with torch.device("meta"):
        tower, encoder = AutoModel.from_config(config.vision_config), None
        if config.query_config is not None:
            encoder = QueryEncoder(config.query_config, config.vision_config)
        pixels = projector.compressor.picture(torch.empty(1, 3, side, side), patch)
    extra = {} if pixels.shape[-1] == side else {"interpolate_pos_encoding": True}
    alone = macs_of(lambda: tower(pixels, output_hidden_states=True, **extra))
    found: list[VisualFeatures] = []

    def read() -> None:
        features = visual_features(
            tower,
            pixels,
            projector.declaration,
            layer=config.vision_feature_layer,
            attention_layer=config.importance_layer,
            levels=config.feature_levels,
            query_encoder=encoder,
        )
        found.append(features)

    whole = macs_of(read)
    return alone, whole - alone, VisualFeatures(**_random(found[0], _like(projector)))


@torch.inference_mode()
def _count_question(config: QMoPConfig, projector: Projector, tokens: int) -> tuple[int, Query | None]:
    """MACs of encoding a question, and random features of the shapes that this gives."""
    reads = projector.declaration.reads
    if "query" not in reads or config.query_config is None:
        return 0, None
    with torch.device("meta"):
        encoder = QueryEncoder(config.query_config, config.vision_config)
        longest = encoder.text_tower.config.max_position_embeddings
        ids = torch.ones(1, min(tokens, longest), dtype=torch.long)
    found: list[Query] = []
    count = macs_of(lambda: found.append(encoder(ids, last="last_text" in reads)))
    query = Query(**_random(found[0], _like(projector)))
    if "language_query" in reads:
        count += LanguageShape.of(config.text_config).macs(tokens)
        query.language_BD = _random_like(torch.empty(1, config.text_config.hidden_size), _like(projector))
    return count, query


def _like(projector: Projector) -> Tensor:
    """A number where, and in the precision in which, a projector computes; quantised weights are in none."""
    there = next(projector.parameters(), torch.empty(()))
    precise = next((weight.dtype for weight in projector.parameters() if weight.is_floating_point()), torch.float32)
    return torch.empty((), device=there.device, dtype=precise)


def _random(output: VisualFeatures | Query, like: Tensor) -> dict[str, Any]:
    """Fields with random numbers in place of tensors without any."""
    values = {field.name: getattr(output, field.name) for field in fields(output)}
    return {name: _random_like(value, like) if isinstance(value, Tensor) else value for name, value in values.items()}


def _random_like(value: Tensor, like: Tensor) -> Tensor:
    return torch.rand(value.shape, generator=torch.Generator().manual_seed(0)).to(like)
