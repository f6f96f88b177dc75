"""The second insertion point: visual tokens dropped between two layers of the language model.

Shape legend: that of `reduced_pass.py`.

Hooks on the layers of one model instance do the work. Up to layer `compressor.layer` every token is there; the
attention row of the prompt's last token is recomputed in the layer before (fast attention kernels return none), the
compressor selects, and every later layer sees the rows without the dropped tokens: their states, their position
embeddings (tokens stay at their positions), a mask of their own and shorter key and value caches. Rows that lose more
than others are padded on the left with masked columns.

Tokens are dropped once, at prefill. What was dropped is remembered beside the cache, as the attribute `qmop_kept`, so
that copies of a cache know it too; generation without a cache repeats the first choice (see `Once`).
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle
from transformers import Cache, StaticCache
from transformers.masking_utils import create_causal_mask

from qmop.prompt_attention import judge_attention, judges, visible
from qmop.reduced_pass import Kept, Once, Pass, joined, mask_before, packed, taken

FAMILIES = ("llama", "mistral", "qwen2")
"""Language models whose attention is projections, rotary embeddings and grouped heads, and nothing else."""

Call = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments of a module."""

PASS = "reduction"  # noqa: S105 - the keyword by which a pass travels through a model's layers
KEPT = "qmop_kept"


class Selector(Protocol):
    """What chooses: a compressor that acts in the language model, such as FastV."""

    grid: int
    tokens: int
    layer: int

    def select(self, attention_BN: Tensor) -> Tensor:
        """Indices of the tokens of each image that go on, ascending, `(B, M)`."""


class Reducer:
    """Hooks on one language model; nothing of it is registered in the model.

    Args:
        language_model: transformers' `LlamaModel` or another of `FAMILIES`.
        compressor: a method that acts in the language model.

    Raises:
        ValueError: if the model is of another family, uses sliding windows, or has too few layers.
    """

    def __init__(self, language_model: Any, compressor: Selector) -> None:
        config = language_model.config
        if config.model_type not in FAMILIES or getattr(config, "sliding_window", None):
            kind = f"{config.model_type}{' with sliding windows' if config.model_type in FAMILIES else ''}"
            raise ValueError(f"the language model is a {kind}, but tokens can be dropped only in {', '.join(FAMILIES)}")
        if compressor.layer >= config.num_hidden_layers:
            raise ValueError(
                f"layer is {compressor.layer}, but the language model has {config.num_hidden_layers} layers: "
                f"choose 1 to {config.num_hidden_layers - 1}"
            )
        self.language_model, self.compressor = language_model, compressor
        layers = [layer.register_forward_pre_hook(self._enter, with_kwargs=True) for layer in language_model.layers]
        begin = language_model.register_forward_pre_hook(self._begin, with_kwargs=True)
        self._hooks: list[RemovableHandle] = [begin, *layers]

    def detach(self) -> None:
        """Take the hooks off."""
        while self._hooks:
            self._hooks.pop().remove()

    def _begin(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """Every pass through the model has a `Pass`, whether the caller gave one or not."""
        cache = kwargs.get("past_key_values")
        if isinstance(cache, StaticCache):
            raise ValueError(
                "the cache is static, but a method inside the language model keeps caches of different lengths: "
                "leave cache_implementation out"
            )
        step = kwargs.get(PASS) or Pass()
        step.past = 0 if cache is None else int(cache.get_seq_length())
        return args, {**kwargs, PASS: step}

    def _enter(self, layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """Before a layer: score in the last full one, drop in the next, and hand later ones what fits."""
        step: Pass = kwargs.pop(PASS)
        index, first = layer.self_attn.layer_idx, self.compressor.layer
        if index == first - 1 and step.keep_RL is None:
            step.keep_RL = self._choose(layer, args[0], kwargs, step)
        if index == first:
            args = (self._reduce(args[0], kwargs, step), *args[1:])
        return args, {**kwargs, **step.later} if index >= first else kwargs

    def _choose(self, layer: Any, states_RLD: Tensor, kwargs: dict[str, Any], step: Pass) -> Tensor | None:
        """What stays, `(R, L)`: everything but the visual tokens that the method leaves out; None if all stay."""
        each = self.compressor.grid**2
        if step.visual_RL is None or self.compressor.tokens >= each:
            return None
        visual_RL = step.visual_RL.to(states_RLD.device)
        if (total := int(visual_RL.sum())) % each:
            raise ValueError(
                f"the prompts have {total} visual tokens, which is no multiple of {each}: "
                "let the processor write the prompts, with one image placeholder per picture"
            )
        seen = visible(kwargs.get("attention_mask"), step.past + states_RLD.shape[1], len(states_RLD))
        judge_R = judges(visual_RL, seen, step.labels_RL)
        attention_RL = judge_attention(layer, states_RLD, kwargs, judge_R, seen=seen, past=step.past)
        kept_BM = self.compressor.select(attention_RL[visual_RL].view(-1, each))
        keep_BN = torch.zeros(len(kept_BM), each, dtype=torch.bool, device=kept_BM.device).scatter(1, kept_BM, True)
        return (~visual_RL).masked_scatter(visual_RL, keep_BN)

    def _reduce(self, states_RLD: Tensor, kwargs: dict[str, Any], step: Pass) -> Tensor:
        """The states that go on, `(R, K, D)`; what the later layers need beside them is left in the pass."""
        cache: Cache | None = kwargs.get("past_key_values")
        kept = getattr(cache, KEPT, None) if step.past else None
        if kept is None and step.keep_RL is None:
            return states_RLD
        kept, rows, width = kept or Kept(), len(states_RLD), states_RLD.shape[1]
        if kept.columns > step.past:
            raise ValueError("the cache was cut back into a prompt that tokens were dropped from: begin a new cache")
        seen = visible(kwargs.get("attention_mask"), step.past + width, rows)
        before = mask_before(kept, seen, step.past, rows, states_RLD.device)
        now = None if seen is None else seen[:, step.past :]
        if step.keep_RL is not None:
            now = packed(step, now)
            states_RLD = taken(states_RLD, step.order_RK)
            step.later["position_embeddings"] = tuple(
                taken(part.expand(rows, -1, -1), step.order_RK) for part in kwargs["position_embeddings"]
            )
        lengths = (kept.length + step.past - kept.columns, states_RLD.shape[1])
        mask = joined(before, now, lengths, rows, states_RLD.device)
        step.later["attention_mask"] = create_causal_mask(
            self.language_model.config, states_RLD, mask, cache, layer_idx=self.compressor.layer
        )
        step.later["position_ids"] = None  # kernels read them only to find packed rows, and gaps would mislead them
        if step.keep_RL is not None and cache is not None:
            setattr(cache, KEPT, Kept(step.past + width, sum(lengths), mask))
        return states_RLD


def forward_reduced(model: Any, forward: Any, words: dict[str, Any], once: Once | None = None) -> Any:
    """`forward` of a LLaVA-shaped model whose language model has a `Reducer`.

    Rows of logits are as short as what went on; the loss is over the labels of the same columns.

    Args:
        model: the model, for its configuration and its loss.
        forward: its stock `forward`, or that of its parent.
        words: everything that it is to be given, images as `mm_encoder_outputs`.
        once: of a generation, so that steps without a cache repeat the first choice.

    Raises:
        ValueError: if there are images, but embeddings instead of ids.
    """
    labels, ids = words.pop("labels", None), words.get("input_ids")
    visual = None
    if (words.get("mm_encoder_outputs") or {}).get("image") is not None:
        if ids is None:
            raise ValueError("inputs_embeds do not tell which tokens are visual: pass input_ids")
        visual = ids == model.config.image_token_id
    uncached = words.get("past_key_values") is None
    step = Pass(visual_RL=visual, labels_RL=labels)
    if once is not None and uncached and visual is not None:
        step.keep_RL = once.over(visual)
    as_tuple = words.pop("return_dict", None) is False
    output = forward(**words, **{PASS: step}, return_dict=True)
    if once is not None and uncached and once.keep_RL is None:
        once.keep_RL = step.keep_RL
    if labels is not None:
        size = model.config.text_config.vocab_size
        loss = model.loss_function(logits=output.logits, labels=step.fit_labels(labels), vocab_size=size)
        output = type(output)(**{**output, "loss": loss})
    return output.to_tuple() if as_tuple else output


def attach_reducer(language_model: Any, compressor: Selector) -> Reducer:
    """Let a method act inside a language model, until the returned `Reducer` is detached.

    Raises:
        ValueError: as `Reducer`.
    """
    return Reducer(language_model, compressor)
