"""The query-guided router: image summary and question to one weight per branch (Sec. 3.2, 3.4)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.activations import ACT2FN

from qmop.compressors.base import one_of
from qmop.compressors.values import finite, whole

Select = Literal["top_k", "threshold", "all", "equal"]
Activation = Literal["gelu", "relu", "silu", "tanh"]
RouterInputs = Literal["both", "image", "text", "none"]


class Router(nn.Module):
    """softmax((W2 gelu(W1 [image; question] + b1) + b2 + g * Gumbel) / temperature), one weight per branch.

    Temperature and noise of training are set by `anneal`; in evaluation mode the temperature is the final one and
    there is no noise, whatever the last `anneal` said.

    Args:
        image_width: C, width of the image summary.
        text_width: E, width of the question's feature.
        branches: S.
        hidden: d, the hidden width (open in the paper).
        activation: between the two layers (the paper says only that it is not linear).
        inputs: what the router reads; `image` or `text` alone, or `none` (the same learned weights for all), are
            ablations that the paper lacks.
        normalise: bring both inputs to unit length first (open in the paper), so that neither drowns the other.
        temperature: the final temperature, used at inference, and in training until `anneal` sets another.

    Raises:
        ValueError: if the temperature cannot divide, there is no hidden layer, or a choice is unknown.
    """

    def __init__(
        self,
        *,
        image_width: int,
        text_width: int,
        branches: int,
        hidden: int = 512,
        activation: Activation = "gelu",
        inputs: RouterInputs = "both",
        normalise: bool = True,
        temperature: float = 0.5,
    ) -> None:
        super().__init__()
        if not (finite(temperature) and temperature > 0):
            raise ValueError(
                f"temperature is {temperature!r}, but it divides the router's logits: choose a finite one above 0"
            )
        one_of("activation", activation, Activation)
        one_of("inputs", inputs, RouterInputs)
        whole("hidden", hidden, "the router needs a hidden layer")
        self.activation, self.inputs = ACT2FN[activation], inputs
        self.enter = nn.Linear(image_width + text_width, hidden)
        self.leave = nn.Linear(hidden, branches)
        self.normalise, self.noise = normalise, 0.0
        self.final_temperature = self.annealed_temperature = temperature
        self.generator: torch.Generator | None = None

    @property
    def temperature(self) -> float:
        """What divides the logits now: the annealed temperature in training mode, the final one in evaluation."""
        return self.annealed_temperature if self.training else self.final_temperature

    def anneal(self, temperature: float, noise: float, seed: int | None = None) -> None:
        """Set a training step's temperature and noise scale, and the seed of its Gumbel draws."""
        self.annealed_temperature, self.noise = temperature, noise
        self.generator = None if seed is None else torch.Generator().manual_seed(seed)

    def forward(self, summary_BC: Tensor, text_BE: Tensor) -> Tensor:
        """Weights that sum to one, `(B, S)`, in single precision."""
        if self.normalise:
            summary_BC, text_BE = F.normalize(summary_BC, dim=-1), F.normalize(text_BE, dim=-1)
        if self.inputs != "both":  # a part that is zero for every image says nothing
            summary_BC = summary_BC if self.inputs == "image" else 0 * summary_BC
            text_BE = text_BE if self.inputs == "text" else 0 * text_BE
        logits = self.leave(self.activation(self.enter(torch.cat([summary_BC, text_BE.to(summary_BC.dtype)], dim=-1))))
        if self.training and self.noise > 0:
            uniform = torch.rand(logits.shape, generator=self.generator).clamp(1e-9, 1 - 1e-9)
            logits = logits + self.noise * -torch.log(-torch.log(uniform)).to(logits)
        return (logits.float() / self.temperature).softmax(dim=-1)


def select_branches(weights_BS: Tensor, how: Select, top_k: int, threshold: float) -> Tensor:
    """Weights of the branches that run, renormalised to one, zero for the others; `(B, S)`.

    The paper's introduction keeps the top two, its Sec. 3.4 those above a threshold; both are here. With a
    threshold the strongest branch always stays.
    """
    if how in ("all", "equal"):
        return weights_BS
    order = weights_BS.sort(dim=1, descending=True, stable=True).indices
    rank = order.argsort(dim=1)
    chosen = rank < top_k if how == "top_k" else (weights_BS > threshold) | (rank == 0)
    kept = weights_BS * chosen
    return kept / kept.sum(dim=1, keepdim=True)
