"""The second insertion point: visual tokens dropped between two layers of the language model.

Shape legend beside that of `features.py`: R prompt rows, L columns of this pass, P columns of earlier passes,
K columns that go on.

Hooks on the layers of one model instance do the work. Up to layer `compressor.layer` every token is there; the
attention row of the prompt's last token is recomputed in the layer before (fast attention kernels return none), the
compressor selects, and every later layer sees the rows without the dropped tokens: their states, their position
embeddings (tokens stay at their positions), a mask of their own and shorter key and value caches. Rows that lose more
than others are padded on the left with masked columns.

Tokens are dropped once, at prefill. What was dropped is remembered beside the cache, as the attribute `qmop_kept`, so
that copies of a cache know it too; generation without a cache repeats the first choice (see `Once`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle
from transformers import Cache, StaticCache
from transformers.masking_utils import create_causal_mask

from qmop.placeholders import IGNORED
from qmop.prompt_attention import judge_attention, judges, visible

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


@dataclass(frozen=True)
class Kept:
    """What earlier passes left in the caches of the later layers.

    Attributes:
        columns: how many columns the earlier layers hold for these.
        length: how many of them the later layers hold.
        mask_RP: `(R, length)`, true where a column is real; all are when absent.
    """

    columns: int = 0
    length: int = 0
    mask_RP: Tensor | None = None


@dataclass
class Once:
    """Carries the choice of the first pass of a generation without caches to the passes after it."""

    keep_RL: Tensor | None = None

    def over(self, visual_RL: Tensor) -> Tensor | None:
        """The choice over rows that have grown since: what is new stays."""
        if self.keep_RL is None:
            return None
        return F.pad(self.keep_RL, (0, visual_RL.shape[1] - self.keep_RL.shape[1]), value=True)


@dataclass
class Pass:
    """One pass through a reduced language model.

    Attributes:
        visual_RL: true at visual tokens; absent where there are none to drop.
        labels_RL: targets, which tell the prompt from its answer.
        keep_RL: what stays; chosen in the pass unless given.
        order_RK: the columns that go on, once something was dropped.
        real_RK: true where such a column is real.
    """

    visual_RL: Tensor | None = None
    labels_RL: Tensor | None = None
    keep_RL: Tensor | None = None
    order_RK: Tensor | None = None
    real_RK: Tensor | None = None
    past: int = 0
    later: dict[str, Any] = field(default_factory=dict)

    def fit_labels(self, labels_RL: Tensor) -> Tensor:
        """Labels of the columns that went on, `(R, K)`."""
        if self.order_RK is None or self.real_RK is None:
            return labels_RL
        order = self.order_RK.to(labels_RL.device)
        return labels_RL.gather(1, order).masked_fill(~self.real_RK.to(labels_RL.device), IGNORED)


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
        before = _before(kept, seen, step.past, rows, states_RLD.device)
        now = None if seen is None else seen[:, step.past :]
        if step.keep_RL is not None:
            now = _pack(step, now)
            states_RLD = _take(states_RLD, step.order_RK)
            step.later["position_embeddings"] = tuple(
                _take(part.expand(rows, -1, -1), step.order_RK) for part in kwargs["position_embeddings"]
            )
        lengths = (kept.length + step.past - kept.columns, states_RLD.shape[1])
        mask = _join(before, now, lengths, rows, states_RLD.device)
        step.later["attention_mask"] = create_causal_mask(
            self.language_model.config, states_RLD, mask, cache, layer_idx=self.compressor.layer
        )
        step.later["position_ids"] = None  # kernels read them only to find packed rows, and gaps would mislead them
        if step.keep_RL is not None and cache is not None:
            setattr(cache, KEPT, Kept(step.past + width, sum(lengths), mask))
        return states_RLD


def _take(states_RLD: Tensor, order_RK: Tensor | None) -> Tensor:
    assert order_RK is not None, "rows are packed before they are taken"
    order = order_RK.to(states_RLD.device)
    return states_RLD.gather(1, order.unsqueeze(-1).expand(-1, -1, states_RLD.shape[-1]))


def _pack(step: Pass, now_RL: Tensor | None) -> Tensor | None:
    """Order the columns that go on to the right of each row; the mask of the packed rows, None if all are real."""
    assert step.keep_RL is not None, "something was chosen"
    real_RL = step.keep_RL if now_RL is None else step.keep_RL.to(now_RL.device) & now_RL
    counts = real_RL.sum(dim=1)
    longest, shortest = torch.stack([counts.max(), counts.min()]).tolist()
    step.order_RK = real_RL.int().argsort(dim=1, stable=True)[:, real_RL.shape[1] - longest :]
    step.real_RK = real_RL.gather(1, step.order_RK)
    return None if longest == shortest else step.real_RK


def _before(kept: Kept, seen: Tensor | None, past: int, rows: int, device: torch.device) -> Tensor | None:
    """The mask over what the later layers' caches hold, None if all is real."""
    old = kept.mask_RP
    if old is not None and len(old) != rows:  # the cache was repeated over the batch since
        old = old.repeat_interleave(rows // len(old), dim=0)
    since = None if seen is None else seen[:, kept.columns : past]
    return _join(old, since, (kept.length, past - kept.columns), rows, device)


def _join(
    left: Tensor | None, right: Tensor | None, lengths: tuple[int, int], rows: int, device: torch.device
) -> Tensor | None:
    """Two masks side by side, where an absent one is all true; absent if both are."""
    if left is None and right is None:
        return None
    full = (torch.ones(rows, length, dtype=torch.bool, device=device) for length in lengths)
    parts = zip((left, right), full, strict=True)
    return torch.cat([ones if part is None else part.to(device) for part, ones in parts], dim=1)


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
