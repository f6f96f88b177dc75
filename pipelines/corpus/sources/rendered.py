"""Scenes from the benchmark's own renderer, drawn from seeds that the benchmark itself never uses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pipelines.corpus.samples import Fault, Raw
from pipelines.corpus.sources.base import Mapper, Unit, cut, digest_of
from qmop.vtcbench.painting import encode_png
from qmop.vtcbench.rendered import RenderedScene, training_scene

CAPTION_PROMPT = "describe the picture ."
"""Asked where a scene has fewer questions than `questions_per_scene`; worded like the renderer's own questions."""
_PROBES = 8


@dataclass(frozen=True)
class RenderedSource:
    """One sample per scene and question: visual tokens that depend on the question allow no packing.

    Args:
        seed: seed of the scenes.
        count: samples, not scenes.
        questions_per_scene: how many neighbouring samples share a scene.
    """

    seed: int
    count: int
    questions_per_scene: int

    def fingerprint(self) -> str:
        """Over the first few scenes: a renderer that draws differently makes another corpus."""
        scenes = [training_scene(self.seed, number) for number in range(_PROBES)]
        return digest_of([[encode_png(scene.pixels).hex(), scene.caption, _asked(scene)] for scene in scenes])

    def units(self, samples_per_shard: int, mapped: Mapper = map) -> list[Unit]:  # noqa: ARG002 - nothing to look at
        """Ranges of sample positions."""
        return list(cut(self.count, samples_per_shard))

    def read(self, unit: Unit) -> Iterator[Raw | Fault]:
        """Render the scenes of a range, each once, and ask its questions in turn."""
        number, scene, image = -1, None, b""
        for position in range(unit.start, unit.stop):
            wanted, turn = divmod(position, self.questions_per_scene)
            if scene is None or wanted != number:
                number, scene = wanted, training_scene(self.seed, wanted)
                image = encode_png(scene.pixels)
            yield _sample(scene, image, position, turn)


def _asked(scene: RenderedScene) -> list[list[str]]:
    return [[turn.question, turn.answer] for turn in scene.turns]


def _sample(scene: RenderedScene, image: bytes, position: int, turn: int) -> Raw:
    asked = _asked(scene)
    question, answer = asked[turn] if turn < len(asked) else (CAPTION_PROMPT, scene.caption)
    return Raw(
        position=position,
        identity=f"{scene.key}-{turn}",
        images=(image,),
        messages=[{"role": "user", "text": question}, {"role": "assistant", "text": answer}],
        origin={"scene": scene.key, "turn": turn},
    )
