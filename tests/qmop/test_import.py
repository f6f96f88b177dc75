"""What `import qmop` costs, and that the library lives without the pipelines' packages and without extras."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

import qmop


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


EXTRAS = ("scipy", "matplotlib", "jinja2", "peft", "lmms_eval", "pyarrow", "sklearn", "ray", "deepspeed")

COUNTED = """
import json, sys, time

def took(load):
    names, begun = set(sys.modules), time.perf_counter()
    load()
    return {"seconds": time.perf_counter() - begun, "modules": sorted(set(sys.modules) - names)}

def base():
    import torch, transformers

def package():
    import qmop

def towers():
    import transformers.models.llava.modeling_llava
    from transformers import AutoProcessor, AutoTokenizer, CLIPImageProcessorPil, CLIPTextModelWithProjection

def classes():
    import qmop
    assert qmop.list_compressors() and qmop.QMoPForConditionalGeneration and qmop.QMoPProcessor

def model():
    import qmop
    qmop.load(sys.argv[1])

print(json.dumps([took(load) for load in (base, package, towers, classes, model)]))
"""


@pytest.fixture(scope="module")
def steps() -> list[dict[str, Any]]:
    """Time and newly loaded modules: torch and transformers, `import qmop`, stock LLaVA, our classes, a model."""
    weights = Path(qmop.__file__).parent / "tiny" / "weights"
    command = [sys.executable, "-c", COUNTED, str(weights)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.timeout(300)
def test_import_loads_nothing_heavy() -> None:
    code = "import sys, qmop; print(qmop.__version__); print(sorted(m for m in sys.modules if m.startswith('qmop')));"
    code += "print([m for m in ('torch', 'transformers', 'ray', 'deepspeed', 'numpy') if m in sys.modules])"
    assert python(code).splitlines() == [qmop.__version__, "['qmop']", "[]"]


@pytest.mark.timeout(300)
def test_beyond_torch_and_transformers_the_import_is_one_module(steps: list[dict[str, Any]]) -> None:
    base, package, *_ = steps
    assert package["modules"] == ["qmop"]
    assert package["seconds"] < 0.05 * base["seconds"]  # a thousandth on a quiet machine


@pytest.mark.timeout(300)
def test_our_classes_load_little_beyond_stock_llava(steps: list[dict[str, Any]]) -> None:
    base, _, towers, classes, _ = steps
    foreign = [name for name in classes["modules"] if name.partition(".")[0] != "qmop"]
    tops = {name.partition(".")[0] for name in foreign} - set(sys.stdlib_module_names)
    assert tops <= {"transformers", "torch", "safetensors", "PIL", "tokenizers", "huggingface_hub", "yaml"}
    assert len(foreign) < 20
    assert classes["seconds"] < 0.5 * (base["seconds"] + towers["seconds"])


@pytest.mark.timeout(300)
def test_neither_import_nor_loading_a_model_brings_extras(steps: list[dict[str, Any]]) -> None:
    _, package, _, classes, model = steps  # what stock LLaVA brings along is transformers' own choice
    brought = {name.partition(".")[0] for step in (package, classes, model) for name in step["modules"]}
    assert not brought & set(EXTRAS)


@pytest.mark.timeout(300)
def test_methods_are_listed_where_ray_and_deepspeed_cannot_be_imported() -> None:
    code = """
import sys
sys.modules["ray"] = sys.modules["deepspeed"] = None
import qmop
print(sorted(qmop.list_compressors()))
import qmop.loading, qmop.answering, qmop.tiny.assemble
"""
    assert python(code) == str(sorted(qmop.list_compressors()))


@pytest.mark.timeout(300)
def test_the_models_module_makes_every_auto_class_know_us() -> None:
    weights = Path(qmop.__file__).parent / "tiny" / "weights"
    code = f"""
import qmop.modeling_qmop
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor
for kind in (AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor):
    print(type(kind.from_pretrained({str(weights)!r}, local_files_only=True)).__name__)
"""
    names = ["QMoPConfig", "QMoPModel", "QMoPForConditionalGeneration", "QMoPProcessor"]
    assert python(code).splitlines() == names


def test_annotations_are_offered_to_type_checkers() -> None:
    package = Path(qmop.__file__).parent
    assert (package / "py.typed").is_file()
    shipped = tomllib.loads((package.parent / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    assert "py.typed" in shipped["*"]


def test_every_public_name_can_be_imported() -> None:
    for name in qmop.__all__:
        assert getattr(qmop, name) is not None
    assert dir(qmop) == qmop.__all__


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'qmop' has no attribute 'compres'"):
        _ = qmop.compres
