"""First part: the vision and text towers, on dense targets, captions and the wording of questions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextModelWithProjection, CLIPVisionModel

from qmop.tiny.configs import PROJECTION, query_config, vision_config
from qmop.tiny.pretraining.loop import Schedule
from qmop.tiny.pretraining.world import IMAGE_CLASSES, PATCH_CLASSES, World, focus_mask, normalise, patch_cells
from qmop.tiny.tokenizer import query_tokenizer
from qmop.vtcbench.scene import LATTICE

_BACKGROUND = 0.2  # weight of a background patch against one of an object
SPOTS = ("row", "column")
"""Where a patch lies, which the language model must be able to read off it."""
WEIGHTS = {"row": 0.1, "column": 0.1, "mood": 0.3, "texture": 0.3, "light": 0.3, "size": 0.3, "contrast": 0.1}


@dataclass(frozen=True, kw_only=True)
class TowerRecipe:
    """How long and how fast the towers learn.

    Attributes:
        schedule: steps and rates.
        batch: pictures of a step.
        cells: of the 36 that are shown in most steps, those with objects first: half a picture costs less than half.
        whole: share of the steps, the last ones, that see whole pictures.
        text_every: steps between two that train the text tower as well, and the last layer.
        seed: of start values and draws.
    """

    schedule: Schedule = field(default_factory=lambda: Schedule(steps=1300, warmup=50))
    batch: int = 32
    cells: int = 18
    whole: float = 0.15
    text_every: int = 3
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
        self.patch_heads = nn.ModuleDict({name: nn.Linear(width, len(of)) for name, of in PATCH_CLASSES.items()})
        self.image_heads = nn.ModuleDict({name: nn.Linear(width, len(of)) for name, of in IMAGE_CLASSES.items()})
        self.spot_heads = nn.ModuleDict({name: nn.Linear(width, LATTICE) for name in SPOTS})
        self.head_norm = nn.LayerNorm(width)
        self.log_scale = nn.Parameter(torch.tensor([math.log(10.0), math.log(10.0)]))
        self.focus_bias = nn.Parameter(torch.tensor(-3.0))

    def encode_image(self, pixels_BCHW: Tensor, shown_BN: Tensor | None = None) -> Tensor:
        """Second-to-last hidden states with the class token first, `(B, 1 + N, C)`.

        Args:
            pixels_BCHW: normalised pixels.
            shown_BN: indices of the patches to look at; all when absent.
        """
        states = self.vision.embeddings(pixels_BCHW)
        if shown_BN is not None:
            states = torch.cat([states[:, :1], gather(states[:, 1:], shown_BN)], dim=1)
        states = self.vision.pre_layrnorm(states)
        for layer in self.vision.encoder.layers[:-1]:
            states = layer(states, None)
        return states

    def last_layer(self, states_BNC: Tensor) -> Tensor:
        """Last hidden states from the second-to-last ones."""
        return self.vision.encoder.layers[-1](states_BNC, None)

    def project(self, last_BNC: Tensor) -> Tensor:
        """Any visual states in text space, unit length."""
        return F.normalize(self.visual_projection(self.vision.post_layernorm(last_BNC)), dim=-1)

    def encode_text(self, texts: list[str]) -> Tensor:
        """End-token embeddings of texts in text space, unit length, `(B, E)`."""
        encoded = [self.tokenizer.encode(text, add_special_tokens=False) for text in texts]
        return self.encode_ids([np.array(ids) for ids in encoded])

    def encode_ids(self, texts: Sequence[np.ndarray]) -> Tensor:
        """The same of texts in ids, without begin and end tokens."""
        longest = min(max(map(len, texts)) + 2, self.text.config.max_position_embeddings)
        ids = torch.full((len(texts), longest), self.tokenizer.pad_token_id)
        ids[:, 0] = self.tokenizer.bos_token_id
        for row, text in enumerate(texts):
            kept = torch.from_numpy(text[: longest - 2].astype(np.int64))
            ids[row, 1 : 1 + len(kept)] = kept
            ids[row, 1 + len(kept)] = self.tokenizer.eos_token_id
        mask = (ids != self.tokenizer.pad_token_id).long()
        return F.normalize(self.text(input_ids=ids, attention_mask=mask).text_embeds, dim=-1)


class TowerTask:
    """The loss of every step, each a function of the step's number alone."""

    def __init__(self, towers: Towers, world: World, recipe: TowerRecipe) -> None:
        self._towers, self._world, self._recipe = towers, world, recipe

    def losses(self, step: int) -> dict[str, Tensor]:
        """Every part of the loss at a step, weighted."""
        recipe, world = self._recipe, self._world
        rng = np.random.default_rng((recipe.seed, step))
        rows = np.sort(rng.integers(len(world), size=recipe.batch))
        whole = step >= (1 - recipe.whole) * recipe.schedule.steps
        shown = None if whole else visible(world.patches["kind"][rows], recipe.cells, rng)
        states = self._towers.encode_image(normalise(world.pixels[rows]), shown)
        losses = self._dense(states, rows, shown)
        if step % recipe.text_every == 0:
            losses |= self._spoken(states, rows, shown, rng)
        return {name: WEIGHTS.get(name, 1.0) * loss for name, loss in losses.items()}

    def _dense(self, states_BNC: Tensor, rows: np.ndarray, shown_BN: Tensor | None) -> dict[str, Tensor]:
        """Cross-entropy of every auxiliary head: of patches, and of pictures from the mean of their patches."""
        towers, world = self._towers, self._world
        states = towers.head_norm(states_BNC[:, 1:])
        weight = torch.where(_classes(world.patches["kind"][rows], shown_BN) > 0, 1.0, _BACKGROUND)
        weight = weight / weight.sum()
        losses = {}
        for name, head in towers.patch_heads.items():
            targets = _classes(world.patches[name][rows], shown_BN)
            losses[name] = (F.cross_entropy(head(states).transpose(1, 2), targets, reduction="none") * weight).sum()
        spots = torch.from_numpy(patch_cells())[None].expand(len(rows), -1)
        spots = spots if shown_BN is None else spots.gather(1, shown_BN)
        for name, head in towers.spot_heads.items():
            targets = spots // LATTICE if name == "row" else spots % LATTICE
            losses[name] = F.cross_entropy(head(states).transpose(1, 2), targets)
        mean = states.mean(1)
        for name, head in towers.image_heads.items():
            losses[name] = F.cross_entropy(head(mean), torch.from_numpy(world.images[name][rows].astype(np.int64)))
        return losses

    def _spoken(
        self, states_BNC: Tensor, rows: np.ndarray, shown_BN: Tensor | None, rng: np.random.Generator
    ) -> dict[str, Tensor]:
        """Pictures against short captions, and questions against the patches that they ask for."""
        towers, texts = self._towers, [self._world.texts[row] for row in rows]
        visual = towers.project(towers.last_layer(states_BNC))
        asked = [int(rng.integers(len(text.questions))) for text in texts]
        captions = towers.encode_ids([text.short for text in texts])
        questions = towers.encode_ids([text.questions[turn] for text, turn in zip(texts, asked, strict=True)])
        scale = towers.log_scale.exp().clamp(max=50)
        logits = scale[0] * visual[:, 0] @ captions.T
        targets = torch.arange(len(rows))
        contrast = F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)
        likeness = scale[1] * torch.einsum("bnc,bc->bn", visual[:, 1:], questions) + towers.focus_bias
        mask = focus_mask([text.focus[turn] for text, turn in zip(texts, asked, strict=True)])
        mask = mask if shown_BN is None else mask.gather(1, shown_BN)
        return {"contrast": contrast, "focus": F.binary_cross_entropy_with_logits(likeness, mask)}


def visible(kinds_BN: np.ndarray, cells: int, rng: np.random.Generator) -> Tensor:
    """Patches of some cells of each picture, `(B, 4 * cells)`: of all with objects, then of others by chance."""
    first = np.unique(patch_cells(), return_index=True)[1]
    order = rng.random((len(kinds_BN), len(first))) + (kinds_BN[:, first] > 0)
    chosen = np.sort(np.argsort(-order, axis=1)[:, :cells], axis=1)
    patches = np.stack([np.flatnonzero(patch_cells() == cell) for cell in range(len(first))])
    return torch.from_numpy(np.sort(patches[chosen].reshape(len(kinds_BN), -1), axis=1))


def gather(states_BNC: Tensor, shown_BM: Tensor) -> Tensor:
    """The states of some patches, `(B, M, C)`."""
    return states_BNC.gather(1, shown_BM[..., None].expand(-1, -1, states_BNC.shape[-1]))


def _classes(classes_BN: np.ndarray, shown_BM: Tensor | None) -> Tensor:
    """Targets as torch wants them, of the shown patches."""
    classes = torch.from_numpy(classes_BN.astype(np.int64))
    return classes if shown_BM is None else classes.gather(1, shown_BM)


@torch.no_grad()
def tower_scores(towers: Towers, world: World, rows: np.ndarray) -> dict[str, float]:
    """Accuracy of the auxiliary heads, on patches of objects or on pictures."""
    states = towers.head_norm(towers.encode_image(normalise(world.pixels[rows]))[:, 1:])
    shown = torch.from_numpy(world.patches["kind"][rows] > 0)
    scores = {}
    for name, head in towers.patch_heads.items():
        right = head(states).argmax(-1) == torch.from_numpy(world.patches[name][rows].astype(np.int64))
        scores[name] = right[shown].float().mean().item()
    for name, head in towers.image_heads.items():
        right = head(states.mean(1)).argmax(-1) == torch.from_numpy(world.images[name][rows].astype(np.int64))
        scores[name] = right.float().mean().item()
    return scores


@torch.no_grad()
def relevance_auc(
    towers: Towers,
    pixels: np.ndarray,
    questions: Sequence[np.ndarray],
    focus: Sequence[Sequence[int]],
    batch: int = 100,
) -> float:
    """How well patches of the asked-for cells stand above the others by their likeness to the question.

    The chance that an asked-for patch is more alike than another one, the mean over pictures with a focus: 0.5 knows
    nothing, below it the likeness points the wrong way.
    """
    found = []
    for first in range(0, len(pixels), batch):
        part = slice(first, first + batch)
        visual = towers.project(towers.last_layer(towers.encode_image(normalise(pixels[part]))))[:, 1:]
        alike = torch.einsum("bnc,bc->bn", visual, towers.encode_ids(questions[part]))
        for likeness, asked in zip(alike, focus_mask(focus[part]) > 0, strict=True):
            if asked.any():
                found.append((likeness[asked][:, None] > likeness[~asked]).float().mean())
    return torch.stack(found).mean().item()
