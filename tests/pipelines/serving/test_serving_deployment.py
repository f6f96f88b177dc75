from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch

from cluster.storage import put_file, write_atomic
from pipelines.serving.contract import Completion, Job, Sampling
from pipelines.serving.deployment import load_engine
from pipelines.serving.recipe import ServeRecipe
from pipelines.training.exports import publish
from qmop.tiny.assemble import tiny_model, tiny_processor
from tests.pipelines.training.test_exports import FACTS

PLACE = "s3://test-bucket/run/best"


def answered(checkpoint: str) -> str:
    engine = load_engine(ServeRecipe(checkpoint=checkpoint))
    pieces: list[str] = []
    ends: list[Completion | Exception] = []
    sampling, here = Sampling(max_new_tokens=8), threading.Event()
    prompt = engine.warm_up_prompt()
    engine.run([Job(prompt=prompt, sampling=sampling, emit=pieces.append, done=ends.append, cancelled=here)])
    assert isinstance(ends[0], Completion), ends
    return "".join(pieces)


@pytest.mark.parametrize("card", [True, False])
def test_a_checkpoint_in_s3_answers_as_the_same_one_here(s3_server: str, tmp_path: Path, card: bool) -> None:
    assert s3_server
    torch.manual_seed(1)
    model, processor = tiny_model("qmop", 16), tiny_processor(16)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    if card:
        publish(model, processor, model.state_dict(), PLACE, FACTS)
    else:
        for path in (path for path in tmp_path.rglob("*") if path.is_file()):
            put_file(path, f"{PLACE}/{path.relative_to(tmp_path)}")
    said = answered(str(tmp_path))
    assert said
    assert answered(f"{PLACE}/") == said


def test_a_damaged_checkpoint_in_s3_is_named(s3_server: str) -> None:
    assert s3_server
    model = tiny_model("qmop", 16)
    publish(model, tiny_processor(16), model.state_dict(), PLACE, FACTS)
    write_atomic(f"{PLACE}/model.safetensors", b"half")
    with pytest.raises(ValueError, match=f"{PLACE} is damaged: model.safetensors"):
        load_engine(ServeRecipe(checkpoint=PLACE))
