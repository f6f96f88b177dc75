"""First part: the vision and text towers, on dense targets, captions and the wording of questions."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextModelWithProjection, CLIPVisionModel

from qmop.tiny.configs import PROJECTION, query_config, vision_config
from qmop.tiny.pretraining.world import IMAGE_TARGETS, PATCH_TARGETS, World, focus_mask, normalise
from qmop.tiny.tokenizer import query_tokenizer


@dataclass(frozen=True, kw_only=True)
class TowerRecipe:
    """How long and how fast the towers learn."""

    steps: int = 1500
    batch: int = 64
    learning_rate: float = 1e-3
    warmup: int = 100
    weight_decay: float = 0.02
    seed: int = 11


class Towers(nn.Module):
    """Both towers with their projections, and the auxiliary heads that are dropped afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.tokenizer = query_tokenizer()
        self.vision = CLIPVisionModel(vision_config())
        self.text = CLIPTextModelWithProjection(query_config(self.tokenizer))
        width = self.vision.config.hidden_size
        self.visual_projection = nn.Linear(width, PROJECTION, bias=False)
        self.patch_heads = nn.ModuleDict({name: nn.Linear(width, size) for name, size in PATCH_TARGETS.items()})
        self.image_heads = nn.ModuleDict({name: nn.Linear(width, size) for name, size in IMAGE_TARGETS.items()})
        self.head_norm = nn.LayerNorm(width)
        self.log_scale = nn.Parameter(torch.tensor([math.log(10.0), math.log(10.0)]))
        self.focus_bias = nn.Parameter(torch.tensor(-3.0))

    def encode_image(self, pixels_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Second-to-last and last hidden states, both with the class token first: two `(B, 1 + N, C)`."""
        states = self.vision(pixels_BCHW, output_hidden_states=True).hidden_states
        return states[-2], states[-1]

    def project(self, last_BNC: Tensor) -> Tensor:
        """Any visual states in text space, unit length."""
        return F.normalize(self.visual_projection(self.vision.post_layernorm(last_BNC)), dim=-1)

    def encode_text(self, texts: list[str]) -> Tensor:
        """End-token embeddings of texts in text space, unit length, `(B, E)`."""
        ids = self.tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        return F.normalize(self.text(**ids).text_embeds, dim=-1)


def _losses(towers: Towers, world: World, rows: np.ndarray, rng: np.random.Generator) -> dict[str, Tensor]:
    states, last = towers.encode_image(normalise(world.pixels[rows]))
    states = towers.head_norm(states)
    losses = {
        name: F.cross_entropy(
            head(states[:, 1:]).transpose(1, 2), torch.from_numpy(world.patches[name][rows].astype(np.int64))
        )
        for name, head in towers.patch_heads.items()
    }
    for name, head in towers.image_heads.items():
        losses[name] = 0.2 * F.cross_entropy(
            head(states[:, 0]), torch.from_numpy(world.images[name][rows].astype(np.int64))
        )
    visual = towers.project(last)
    asked = [world.scenes[row].turns[rng.integers(len(world.scenes[row].turns))] for row in rows]
    texts = towers.encode_text([world.scenes[row].caption for row in rows] + [turn.question for turn in asked])
    captions, questions = texts.chunk(2)
    scale = towers.log_scale.exp().clamp(max=50)
    logits = scale[0] * visual[:, 0] @ captions.T
    targets = torch.arange(len(rows))
    losses["contrast"] = 0.1 * (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets))
    likeness = scale[1] * torch.einsum("bnc,bc->bn", visual[:, 1:], questions) + towers.focus_bias
    mask = focus_mask(world.cells[rows], [turn.focus for turn in asked])
    losses["focus"] = F.binary_cross_entropy_with_logits(likeness, mask)
    return losses


def cosine(step: int, steps: int, warmup: int) -> float:
    """Linear warm-up, then a cosine to a twentieth."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def train_towers(world: World, recipe: TowerRecipe, say: Callable[[str], None]) -> Towers:
    """Train both towers on a world."""
    torch.manual_seed(recipe.seed)
    rng = np.random.default_rng(recipe.seed)
    towers = Towers()
    optimizer = torch.optim.AdamW(
        towers.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=recipe.weight_decay
    )
    started = time.monotonic()
    for step in range(recipe.steps):
        rows = rng.integers(len(world.pixels), size=recipe.batch)
        optimizer.param_groups[0]["lr"] = recipe.learning_rate * cosine(step, recipe.steps, recipe.warmup)
        losses = _losses(towers, world, rows, rng)
        optimizer.zero_grad(set_to_none=True)
        sum(losses.values(), torch.zeros(())).backward()
        nn.utils.clip_grad_norm_(towers.parameters(), 1.0)
        optimizer.step()
        if step % 25 == 0 or step == recipe.steps - 1:
            parts = " ".join(f"{name} {value.item():.3f}" for name, value in losses.items())
            say(f"towers {step + 1}/{recipe.steps} {time.monotonic() - started:.0f}s {parts}")
    return towers.eval()
