"""Second part: connector and language model on the frozen tower's features, captions and short answers together.

Several question-answer pairs share a picture here, each seeing the picture and itself alone: several times the
supervision per second, at the positions and with the sight that a single question has. Only the base is trained this
way, compared methods never are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from qmop.compressors.projector import Connector
from qmop.tiny.configs import language_config, vision_config
from qmop.tiny.pretraining.loop import Schedule
from qmop.tiny.pretraining.tower import Towers
from qmop.tiny.pretraining.world import GRID, PATCHES, Texts, World, normalise
from qmop.tiny.tokenizer import language_tokenizer

DESCRIBE = "describe the picture ."
_CAPTION_WEIGHT = 0.25
_PREFIX = 2
"""Begin and user tokens, before the picture."""


@dataclass(frozen=True, kw_only=True)
class LanguageRecipe:
    """How long and how fast the language model learns.

    Attributes:
        schedule: steps and rates.
        phases: (share of the steps, visual tokens, pictures of a step) of each phase; a pooled picture is cheaper.
        captions: share of the steps, the first ones, that learn captions too.
        seed: of start values and draws.
    """

    schedule: Schedule = field(default_factory=lambda: Schedule(steps=1800))
    phases: tuple[tuple[float, int, int], ...] = ((0.78, 36, 16), (0.22, 144, 12))
    captions: float = 0.5
    seed: int = 12


@dataclass(frozen=True, kw_only=True)
class Packed:
    """A batch of pictures, each with the text about it: several turns side by side.

    Shapes: `ids`, `weights`, `turns` (B, T): tokens after the picture, what they weigh as targets, and the number of
    their turn, from 1; 0 is padding.
    """

    ids: Tensor
    weights: Tensor
    turns: Tensor


class Speaker(nn.Module):
    """Connector and language model."""

    def __init__(self) -> None:
        super().__init__()
        self.tokenizer = language_tokenizer()
        config = language_config(self.tokenizer)
        self.connector = Connector(vision_config().hidden_size, config.hidden_size)
        self.language = LlamaForCausalLM(config)

    def forward(self, tokens_BMC: Tensor, packed: Packed) -> Tensor:
        """Weighted cross-entropy of the turns, each after the picture and blind to the others.

        Args:
            tokens_BMC: visual tokens before the connector.
            packed: the text.
        """
        logits = self.language.lm_head(self.states(tokens_BMC, packed))
        # a turn begins with a question, which is no target, so its first token needs no state before it
        losses = F.cross_entropy(logits[:, :-1].transpose(1, 2), packed.ids[:, 1:], reduction="none")
        return (losses * packed.weights[:, 1:]).sum() / packed.weights.sum()

    def states(self, tokens_BMC: Tensor, packed: Packed) -> Tensor:
        """Last hidden states of the text, `(B, T, D)`."""
        start = torch.tensor([[self.tokenizer.bos_token_id, self.user]]).expand(len(packed.ids), -1)
        words = self.language.get_input_embeddings()
        visual = self.connector(tokens_BMC)
        joined = torch.cat([words(start), visual.to(words.weight.dtype), words(packed.ids)], dim=1)
        shown = _PREFIX + tokens_BMC.shape[1]
        outputs = self.language.model(
            inputs_embeds=joined,
            attention_mask=sight(packed.turns, shown),
            position_ids=positions(packed.turns, shown),
            use_cache=False,
        )
        return outputs.last_hidden_state[:, shown:]

    @property
    def user(self) -> int:
        """Id of the token that begins a user's turn."""
        return self.tokenizer.convert_tokens_to_ids("<user>")  # type: ignore[return-value] # one token, one id


def sight(turns_BT: Tensor, shown: int) -> Tensor:
    """What each token may look at, `(B, 1, shown + T, shown + T)` boolean: earlier ones of picture or turn."""
    rows = F.pad(turns_BT, (shown, 0))
    known = torch.arange(rows.shape[1]) < shown
    same = rows[:, :, None] == rows[:, None, :]
    earlier = torch.ones(rows.shape[1], rows.shape[1], dtype=torch.bool).tril()
    return ((same | known) & earlier)[:, None]


def positions(turns_BT: Tensor, shown: int) -> Tensor:
    """Places of the tokens, `(B, shown + T)`: every turn begins right after the picture."""
    count = torch.arange(turns_BT.shape[1]).expand_as(turns_BT)
    begins = F.pad(turns_BT[:, 1:] != turns_BT[:, :-1], (1, 0), value=True)
    first = torch.where(begins, count, 0).cummax(dim=1).values
    return torch.cat([torch.arange(shown).expand(len(turns_BT), -1), shown + count - first], dim=1)


def pack(tokenizer: PreTrainedTokenizerFast, texts: Sequence[Texts], *, captions: bool) -> Packed:
    """All turns about some pictures, and their captions if wanted."""
    assistant = tokenizer.convert_tokens_to_ids("<assistant>")
    describe = np.array(tokenizer.encode(DESCRIBE), dtype=np.int16)
    rows = []
    for text in texts:
        turns = [(q, a, 1.0) for q, a in zip(text.questions, text.answers, strict=True)]
        if captions:
            turns.append((describe, text.caption, _CAPTION_WEIGHT))
        ids: list[int] = []
        weights: list[float] = []
        numbers: list[int] = []
        for number, (question, answer, weight) in enumerate(turns, 1):
            told = [*answer.tolist(), tokenizer.eos_token_id]
            ids += [*question.tolist(), assistant, *told]
            weights += [0.0] * (len(question) + 1) + [weight] * len(told)
            numbers += [number] * (len(question) + 1 + len(told))
        rows.append((ids, weights, numbers))
    longest = max(len(ids) for ids, _, _ in rows)
    fills = (tokenizer.pad_token_id, 0.0, 0)
    columns = [
        torch.tensor([row[part] + [fill] * (longest - len(row[part])) for row in rows])
        for part, fill in enumerate(fills)
    ]
    return Packed(ids=columns[0], weights=columns[1], turns=columns[2])


@torch.no_grad()
def cache_features(towers: Towers, pixels: np.ndarray, path: Path, batch: int = 128) -> np.ndarray:
    """The frozen tower's patches of every picture, `(n, 144, C)` float16, in a file that is mapped into memory."""
    if path.is_file():
        return np.load(path, mmap_mode="r")
    shape = (len(pixels), PATCHES, vision_config().hidden_size)
    draft = path.with_name(f".{path.name}")
    features = np.lib.format.open_memmap(draft, mode="w+", dtype=np.float16, shape=shape)
    for first in range(0, len(pixels), batch):
        states = towers.encode_image(normalise(pixels[first : first + batch]))
        features[first : first + batch] = states[:, 1:].half().numpy()
    features.flush()
    draft.rename(path)
    return np.load(path, mmap_mode="r")


def pool(patches_BNC: Tensor, tokens: int) -> Tensor:
    """Average-pool a square patch map to fewer tokens."""
    side = int(tokens**0.5)
    if side == GRID:
        return patches_BNC
    maps = patches_BNC.transpose(1, 2).unflatten(2, (GRID, GRID))
    return F.avg_pool2d(maps, GRID // side).flatten(2).transpose(1, 2)


def features_of(features: np.ndarray | None, rows: slice | np.ndarray, count: int, tokens: int = PATCHES) -> Tensor:
    """Some pictures' features, pooled; one blank token each where there are no features."""
    if features is None:
        return torch.zeros(count, 1, vision_config().hidden_size)
    return pool(torch.from_numpy(np.array(features[rows])).float(), tokens)


class LanguageTask:
    """The loss of every step, a function of the step's number alone; without features the pictures are blank."""

    def __init__(self, speaker: Speaker, features: np.ndarray | None, world: World, recipe: LanguageRecipe) -> None:
        self._speaker, self._features, self._world, self._recipe = speaker, features, world, recipe

    def losses(self, step: int) -> dict[str, Tensor]:
        """The loss at a step."""
        recipe, world = self._recipe, self._world
        done = step / recipe.schedule.steps
        share, batch, tokens = 0.0, recipe.phases[-1][2], recipe.phases[-1][1]
        for part, shown, pictures in recipe.phases:
            share += part
            if done < share:
                batch, tokens = pictures, shown
                break
        rows = np.sort(np.random.default_rng((recipe.seed, step)).integers(len(world), size=batch))
        visual = features_of(self._features, rows, batch, tokens)
        texts = [world.texts[row] for row in rows]
        packed = pack(self._speaker.tokenizer, texts, captions=done < recipe.captions)
        return {f"language@{visual.shape[1]}": self._speaker(visual, packed)}
