"""The plug-in over stand-ins for the harness's modules and its base class."""

from __future__ import annotations

import importlib
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from qmop import lmms_eval_plugin as plugin
from qmop.tiny.assemble import tiny_model, tiny_processor


@dataclass(frozen=True)
class Request:
    """What of the harness's requests a model reads."""

    args: tuple[Any, ...]


class Base:
    """Stands for the harness's base class."""

    def __init__(self) -> None:
        self.task_dict: dict[str, Any] = {}

    @property
    def rank(self) -> int:
        return 0


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Stand-ins for the modules of the harness that the plug-in imports."""
    names = ("api.model", "api.instance", "models.registry_v2")
    model, instance, registry = (ModuleType(f"lmms_eval.{name}") for name in names)
    vars(model)["lmms"], vars(instance)["GenerationResult"], vars(registry)["ModelManifest"] = Base, dict, dict
    packages = map(ModuleType, ("lmms_eval", "lmms_eval.api", "lmms_eval.models"))
    for module in (*packages, model, instance, registry):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    plugin._married.cache_clear()
    yield
    plugin._married.cache_clear()


@pytest.mark.usefixtures("harness")
def test_the_harness_finds_both_models_and_builds_one(tmp_path: Path) -> None:
    tiny_model("prune", 16).save_pretrained(tmp_path)
    tiny_processor(16).save_pretrained(tmp_path)
    found = {manifest["model_id"]: manifest["simple_class_path"] for manifest in plugin.manifests()}
    assert sorted(found) == ["qmop", "qmop_compress"]
    for path in found.values():
        home, _, kind = path.rpartition(".")
        assert issubclass(getattr(importlib.import_module(home), kind), Base)
    kind = plugin.HarnessCheckpointModel
    built = kind(pretrained=str(tmp_path), batch_size=1, max_batch_size=None, device="cpu")
    assert (built.is_simple, built.rank, built.task_dict) == (True, 0, {})
    ((loss, greedy),) = (result["text"] for result in built.loglikelihood([Request(("what ?", "red"))]))
    assert loss > 0
    assert greedy in (True, False)
    with pytest.raises(AttributeError, match="has no attribute 'Harness'"):
        _ = plugin.Harness


def test_the_entry_point_of_the_package_names_the_manifests() -> None:
    stated = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    home, _, name = stated["entry-points"]["lmms_eval.models"]["qmop"].partition(":")
    assert getattr(importlib.import_module(home), name) is plugin.manifests
    assert stated["optional-dependencies"]["lmms-eval"]
