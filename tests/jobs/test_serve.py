"""What `qmop serve` hands on; the service itself is met in `tests/pipelines/serving`."""

from __future__ import annotations

import io
from contextlib import nullcontext
from pathlib import Path

import pytest

from cluster.ports import free_port
from cluster.progress import Progress
from cluster.storage import put_file, write_atomic
from jobs import serve
from pipelines.serving.recipe import ServeRecipe
from pipelines.serving.serve import deploy
from pipelines.training.exports import publish
from qmop.tiny.assemble import tiny_model, tiny_processor
from qmop.tiny.base import base_path
from tests.pipelines.training.test_exports import FACTS

PLACE = "s3://test-bucket/run/best"


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[ServeRecipe]:
    """The recipes that would have been served."""
    recipes: list[ServeRecipe] = []
    monkeypatch.setattr(serve, "ray_session", lambda *_: nullcontext())
    monkeypatch.setattr(serve, "serve_until_stopped", lambda recipe, _: recipes.append(recipe))
    return recipes


def run(checkpoint: str) -> None:
    assert serve.run(ServeRecipe(checkpoint=checkpoint, port=free_port()), Progress(io.StringIO())) == 0


def test_a_local_checkpoint_is_named_in_full_for_the_replicas(
    served: list[ServeRecipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(base_path("tiny").parent)
    run("weights/")
    run("tiny")
    assert [recipe.checkpoint for recipe in served] == [str(base_path("tiny"))] * 2
    assert [recipe.served_name for recipe in served] == ["weights", "tiny"]


def test_a_checkpoint_in_s3_keeps_its_address_and_gives_its_name(s3_server: str, served: list[ServeRecipe]) -> None:
    assert s3_server
    model = tiny_model("qmop", 16)
    publish(model, tiny_processor(16), model.state_dict(), PLACE, FACTS)
    put_file(base_path("tiny") / "config.json", "s3://test-bucket/elsewhere/config.json")
    run(f"{PLACE}/")
    run("s3://test-bucket/elsewhere")
    assert [recipe.checkpoint for recipe in served] == [PLACE, "s3://test-bucket/elsewhere"]
    assert [recipe.served_name for recipe in served] == ["best", "elsewhere"]


def test_a_damaged_or_missing_checkpoint_in_s3_is_told_before_anything_starts(
    s3_server: str, served: list[ServeRecipe], tmp_path: Path
) -> None:
    assert s3_server
    model = tiny_model("qmop", 16)
    publish(model, tiny_processor(16), model.state_dict(), PLACE, FACTS)
    write_atomic(f"{PLACE}/model.safetensors", b"half")
    with pytest.raises(ValueError, match=f"{PLACE} is damaged: model.safetensors"):
        run(PLACE)
    with pytest.raises(FileNotFoundError, match="s3://test-bucket/none is no finished checkpoint"):
        run("s3://test-bucket/none")
    with pytest.raises(FileNotFoundError, match="holds no model"):
        run(str(tmp_path))
    assert not served
    with pytest.raises(FileNotFoundError, match="checkpoint='s3://test-bucket/none' holds no model"):
        deploy(ServeRecipe(checkpoint="s3://test-bucket/none", port=free_port()), Progress(io.StringIO()))
