"""The library where nothing is installed but torch, transformers, what these two require, and pillow.

Every other installed package is hidden from a fresh interpreter, to the importer as if it were not there.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

import qmop

pytestmark = pytest.mark.pipeline  # several interpreters that import torch: too slow for a test between two edits

ROOT = Path(__file__).parents[2]
ASKED_FOR = ("torch", "transformers", "pillow")

HIDE = """
import sys

HIDDEN = set(HIDDEN)

class Without:
    "Asks the importers that were there before, but never for what a lean environment has not got."
    refused = set()
    before = list(sys.meta_path)

    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top in HIDDEN:
            self.refused.add(top)
            return None
        found = (finder.find_spec(name, path, target) for finder in self.before if hasattr(finder, "find_spec"))
        return next((spec for spec in found if spec is not None), None)

    def find_distributions(self, *args, **kwargs):
        "Packages ask for their own version."
        for finder in self.before:
            if hasattr(finder, "find_distributions"):
                yield from finder.find_distributions(*args, **kwargs)

sys.meta_path[:] = [Without()]
"""

PROBE = """
import importlib, json, pkgutil
import torch
import qmop

def fail(name):
    raise

modules = [module.name for module in pkgutil.walk_packages(qmop.__path__, "qmop.", onerror=fail)]
apart = ("qmop.vtcbench", "qmop.tiny.comparison")
core = [name for name in modules if not name.startswith(apart) and not name.endswith("__main__")]
for name in core:
    importlib.import_module(name)

from PIL import Image
from qmop.answering import prompt
from qmop.tiny.assemble import tiny_model, tiny_processor

torch.manual_seed(0)
written = {}
for name, stated in qmop.list_compressors().items():
    model = tiny_model(name, None if name == "mlp" else 16)
    processor = tiny_processor(model.model.multi_modal_projector.token_count())
    if "language_query" in stated.reads:
        processor.language_query = True
    asked = ["what colour is it ?", "how many ?"]
    batch = processor(
        images=[Image.new("RGB", (96, 96), colour) for colour in ("red", "blue")],
        text=[prompt(processor, question) for question in asked],
        query=asked, padding=True, return_tensors="pt",
    )
    with torch.inference_mode():
        logits = model(**batch).logits
        rows = model.generate(**batch, max_new_tokens=2, min_new_tokens=2)
    assert torch.isfinite(logits).all(), name
    written[name] = rows.shape[1] - batch["input_ids"].shape[1]
model, processor = qmop.load(sys.argv[1])
refused = sorted(sys.meta_path[0].refused)
print(json.dumps({"core": core, "written": written, "refused": refused, "there": sorted(sys.modules)}))
"""


def closure(names: tuple[str, ...]) -> set[str]:
    """The distributions that these need, with their own needs, here and now; extras left out."""
    found, open_ = set[str](), [normal(name) for name in names]
    while open_:
        name = open_.pop()
        if name in found:
            continue
        found.add(name)
        for line in metadata.requires(name) or ():
            needed, _, condition = line.partition(";")
            if "extra" not in condition and installed(required := re.split(r"[\s<>=!~\[(]", needed.strip())[0]):
                open_.append(normal(required))
    return found


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def hidden() -> list[str]:
    """Top-level names that a lean environment does not offer: other packages' and our own around the library."""
    lean = {*closure(ASKED_FOR), "qmop"}
    owners = metadata.packages_distributions()
    others = [name for name, owned in owners.items() if not {normal(one) for one in owned} & lean]
    return sorted({*others, "pipelines", "jobs", "cluster"})


@pytest.fixture(scope="module")
def told() -> dict[str, Any]:
    """What a lean interpreter tells after it imported, built and ran everything."""
    code = f"HIDDEN = {hidden()!r}\n{HIDE}\n{PROBE}"
    command = [sys.executable, "-c", code, str(ROOT / "qmop" / "tiny" / "weights")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_the_closure_holds_what_the_two_require_and_not_what_we_do() -> None:
    lean = closure(ASKED_FOR)
    assert {"torch", "transformers", "pillow", "numpy", "safetensors", "tokenizers", "jinja2"} <= lean
    assert not {"ray", "deepspeed", "scipy", "matplotlib", "peft", "accelerate", "pyarrow", "qmop"} & lean
    assert {"ray", "deepspeed", "scipy", "matplotlib", "accelerate", "pytest", "cluster"} <= set(hidden())
    assert not {"torch", "transformers", "PIL", "numpy", "yaml", "qmop"} & set(hidden())


@pytest.mark.timeout(300)
def test_every_module_of_the_core_is_imported(told: dict[str, Any]) -> None:
    sources = [path for path in (ROOT / "qmop").rglob("*.py") if not {"vtcbench", "comparison"} & set(path.parts)]
    there = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in sources}
    assert set(told["core"]) == {name for name in there if not name.endswith("__main__")} - {"qmop"}


@pytest.mark.timeout(300)
def test_every_method_answers(told: dict[str, Any]) -> None:
    assert told["written"] == dict.fromkeys(qmop.list_compressors(), 2)


@pytest.mark.timeout(300)
def test_what_is_left_out_was_really_missing(told: dict[str, Any]) -> None:
    """Transformers itself asks for the first two; had they been found, the test above would show nothing."""
    assert {"scipy", "accelerate"} <= set(told["refused"])
    assert not {"ray", "deepspeed", "lmms_eval", "matplotlib"} & set(told["there"])


@pytest.mark.timeout(300)
def test_a_module_that_needs_more_is_caught() -> None:
    code = f"HIDDEN = {hidden()!r}\n{HIDE}\nimport qmop.vtcbench.statistics"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 1
    assert "No module named 'scipy'" in done.stderr
