"""What a model costs in multiply-accumulates and cached bytes, known without running it at full size.

The paper prints multiply-accumulates (MACs) and calls them FLOPs; so these are MACs, half of the usual FLOPs.
Counted are products of matrices, convolutions, attention (in full, although half of it is masked in a causal model)
and every product of two tensors element by element, which is how attention over small windows is computed. Not
counted, as in the papers: sums, norms, activations, softmaxes, sorting, interpolation and products with a constant.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from transformers import AutoModel, CLIPTextConfig, CLIPVisionConfig, LlamaConfig, LlavaConfig

from qmop.compressors.mixture import Mixture
from qmop.compressors.projector import Projector, projector_spec
from qmop.configuration_qmop import QMoPConfig
from qmop.encoders import QueryEncoder, visual_features
from qmop.features import Query, VisualFeatures

QUESTION_TOKENS = 51
"""Average length of a question in the paper's data, by its Table 7."""


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


def cost_of(config: LlavaConfig, *, projector: Projector | None = None, question_tokens: int = QUESTION_TOKENS) -> Cost:
    """The cost of a model by its configuration; towers are counted without weights, so size does not matter.

    Args:
        config: of ours, or of a stock LLaVA.
        projector: counted instead of the one that the configuration names. A mixture that the configuration names
            is counted with all its branches, which is the most that it can run; one that is passed, as it is set.
        question_tokens: length of the question, where the method reads it.

    Raises:
        ValueError: if the method does not suit the towers.
    """
    config = _ours(config)
    if projector is not None:
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
    if isinstance(projector.compressor, Mixture):
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


def macs_of(call: Callable[[], object]) -> int:
    """Run something and count its MACs, by the rules at the top of this file."""
    # Fused kernels hide their products from the counter; the plain ones compute the same in the open.
    with _no_fused_attention(), _Counter() as counter:
        call()
    return counter.macs


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


def _ours(config: LlavaConfig) -> QMoPConfig:
    if isinstance(config, QMoPConfig):
        return config
    return QMoPConfig.from_dict({**config.to_dict(), "model_type": QMoPConfig.model_type})


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
    return alone, whole - alone, VisualFeatures(**_random(found[0], _place(projector)))


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
    query = Query(**_random(found[0], _place(projector)))
    if "language_query" in reads:
        count += LanguageShape.of(config.text_config).macs(tokens)
        query.language_BD = _random_like(torch.empty(1, config.text_config.hidden_size), _place(projector))
    return count, query


def _place(projector: Projector) -> torch.device:
    return next((parameter.device for parameter in projector.parameters()), torch.device("cpu"))


def _random(output: VisualFeatures | Query, device: torch.device) -> dict[str, Any]:
    """Fields with random numbers in place of tensors without any."""
    values = {field.name: getattr(output, field.name) for field in fields(output)}
    return {name: _random_like(value, device) if isinstance(value, Tensor) else value for name, value in values.items()}


def _random_like(value: Tensor, device: torch.device) -> Tensor:
    return torch.rand(value.shape, generator=torch.Generator().manual_seed(0)).to(device)


@contextmanager
def _no_fused_attention() -> Iterator[None]:
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


class _Counter(TorchDispatchMode):
    """Adds up the products of every operation; torch's own counter fails on modules that are called with parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.macs = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        kwargs = kwargs or {}
        with self:
            parts = func.decompose(*args, **kwargs)
        if parts is not NotImplemented:
            return parts
        result = func(*args, **kwargs)
        kind = func.overloadpacket
        if kind in flop_registry:
            self.macs += flop_registry[kind](*args, **kwargs, out_val=result) // 2
        elif kind in (torch.ops.aten.mul, torch.ops.aten.mul_):
            self.macs += _elementwise(args[0], args[1], result)
        elif kind == torch.ops.aten._cdist_forward:  # noqa: SLF001 - an operation's name
            self.macs += result.numel() * args[0].shape[-1]
        return result


def _elementwise(left: Any, right: Any, result: Tensor) -> int:
    """One per number in the result, unless one side is a single number."""
    smaller = min(side.numel() if isinstance(side, Tensor) else 1 for side in (left, right))
    return 0 if smaller == 1 else result.numel()
