"""Second part: connector and language model on the frozen tower's features, captions and short answers together.

Several question-answer pairs share a picture here, which gives several times the supervision per second; only the
base is trained this way, compared methods never are.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaForCausalLM

from qmop.compressors.projector import Connector
from qmop.tiny.configs import language_config, vision_config
from qmop.tiny.pretraining.tower import Towers, cosine
from qmop.tiny.pretraining.world import GRID, World, normalise
from qmop.tiny.tokenizer import ASSISTANT, BOS, EOS, USER, language_tokenizer
from qmop.vtcbench.rendered import RenderedScene

DESCRIBE = "describe the picture ."


@dataclass(frozen=True, kw_only=True)
class LanguageRecipe:
    """How long and how fast the language model learns; most steps see a pooled picture, which is cheaper."""

    phases: tuple[tuple[int, int, int], ...] = ((36, 900, 48), (144, 400, 32))
    """(visual tokens, steps, batch) of each phase."""
    learning_rate: float = 1.5e-3
    warmup: int = 100
    weight_decay: float = 0.02
    seed: int = 12
    captions: bool = True


class Speaker(nn.Module):
    """Connector and language model."""

    def __init__(self) -> None:
        super().__init__()
        self.tokenizer = language_tokenizer()
        config = language_config(self.tokenizer)
        self.connector = Connector(vision_config().hidden_size, config.hidden_size)
        self.language = LlamaForCausalLM(config)

    def forward(self, tokens_BMC: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        """Weighted cross-entropy of text that follows the picture.

        Args:
            tokens_BMC: visual tokens before the connector.
            ids: `(B, T)`, the text; its first two tokens (begin, user) stand before the picture.
            weights: `(B, T)`, weight of each token as a target.
        """
        words = self.language.get_input_embeddings()(ids)
        visual = self.connector(tokens_BMC)
        states = self.language.model(inputs_embeds=torch.cat([words[:, :2], visual, words[:, 2:]], dim=1))
        after = states.last_hidden_state[:, visual.shape[1] + 1 : -1]
        logits = self.language.lm_head(after)
        losses = F.cross_entropy(logits.transpose(1, 2), ids[:, 2:], reduction="none")
        return (losses * weights[:, 2:]).sum() / weights.sum()


def conversation(tokenizer: object, scene: RenderedScene, *, captions: bool) -> tuple[list[int], list[float]]:
    """Ids and target weights of all turns about a picture; the caption comes last, for it would give answers away."""
    encode = tokenizer.encode  # type: ignore[attr-defined]
    turns = [(turn.question, turn.answer, 1.0) for turn in scene.turns]
    if captions:
        turns.append((DESCRIBE, scene.caption, 0.25))
    ids, weights = encode(BOS), [0.0]
    for question, answer, weight in turns:
        asked, told = encode(f"{USER} {question} {ASSISTANT}"), encode(f"{answer} {EOS}")
        ids += asked + told
        weights += [0.0] * len(asked) + [weight] * len(told)
    return ids, weights


@torch.no_grad()
def cache_features(towers: Towers, world: World, batch: int = 256) -> np.ndarray:
    """The frozen tower's patches of every picture, `(n, 144, C)` float16."""
    parts = []
    for first in range(0, len(world.pixels), batch):
        states, _ = towers.encode_image(normalise(world.pixels[first : first + batch]))
        parts.append(states[:, 1:].half().numpy())
    return np.concatenate(parts)


def pool(patches_BNC: Tensor, tokens: int) -> Tensor:
    """Average-pool a square patch map to fewer tokens."""
    side = int(tokens**0.5)
    if side == GRID:
        return patches_BNC
    maps = patches_BNC.transpose(1, 2).unflatten(2, (GRID, GRID))
    return F.avg_pool2d(maps, GRID // side).flatten(2).transpose(1, 2)


def _batch(speaker: Speaker, scenes: list[RenderedScene], *, captions: bool) -> tuple[Tensor, Tensor]:
    rows = [conversation(speaker.tokenizer, scene, captions=captions) for scene in scenes]
    length = max(len(ids) for ids, _ in rows)
    pad = speaker.tokenizer.pad_token_id
    ids = torch.tensor([ids + [pad] * (length - len(ids)) for ids, _ in rows])
    weights = torch.tensor([weights + [0.0] * (length - len(weights)) for _, weights in rows])
    return ids, weights


def train_language(
    features: np.ndarray | None, world: World, recipe: LanguageRecipe, say: Callable[[str], None]
) -> Speaker:
    """Train connector and language model; without features the pictures are blank, which gives the blind model."""
    torch.manual_seed(recipe.seed)
    rng = np.random.default_rng(recipe.seed)
    speaker = Speaker()
    optimizer = torch.optim.AdamW(
        speaker.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=recipe.weight_decay
    )
    total, step, started = sum(steps for _, steps, _ in recipe.phases), 0, time.monotonic()
    for tokens, steps, batch in recipe.phases:
        for _ in range(steps):
            rows = rng.integers(len(world.pixels), size=batch)
            scenes = [world.scenes[row] for row in rows]
            ids, weights = _batch(speaker, scenes, captions=recipe.captions)
            if features is None:
                visual = torch.zeros(batch, tokens, vision_config().hidden_size)
            else:
                visual = pool(torch.from_numpy(features[rows]).float(), tokens)
            optimizer.param_groups[0]["lr"] = recipe.learning_rate * cosine(step, total, recipe.warmup)
            loss = speaker(visual, ids, weights)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(speaker.parameters(), 1.0)
            optimizer.step()
            if step % 25 == 0 or step == total - 1:
                seconds = time.monotonic() - started
                say(f"language {step + 1}/{total} {seconds:.0f}s {tokens} tokens loss {loss.item():.3f}")
            step += 1
    return speaker.eval()
