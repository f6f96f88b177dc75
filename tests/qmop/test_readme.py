"""The library's README, followed literally: its tables are those of the code, and its code runs, at tiny size."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPModel

import qmop
from qmop.catalogue import README, cost_table, methods_table, renewed
from qmop.compressors import registry
from qmop.compressors.base import Reads
from qmop.features import Query, VisualFeatures
from qmop.surgery import compress
from qmop.tiny.assemble import tiny_model, tiny_processor
from qmop.tiny.configs import query_config, vision_config
from qmop.tiny.tokenizer import query_tokenizer
from tests.fixtures.stock_llava import mixed_batch, stock_llava, stock_processor

Pictures = Callable[[int], list[Image.Image]]

TEXT = README.read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
TOY = re.search(r"<!-- toy -->\n```python\n(.*?)```", TEXT, flags=re.DOTALL)


def block(beginning: str) -> str:
    """The one block of code with these words in it."""
    (found,) = [code for code in BLOCKS if beginning in code]
    return found


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders that the README names, at tiny size."""
    folder = tmp_path_factory.mktemp("models")
    llava, clip = folder / "llava-1.5-7b-hf", folder / "clip-vit-large-patch14-336"
    stock_llava().save_pretrained(llava)
    stock_processor().save_pretrained(llava)
    words = query_tokenizer()
    text = query_config(words).to_dict()
    towers = CLIPConfig(text_config=text, vision_config=vision_config().to_dict(), projection_dim=128)
    CLIPModel(towers).save_pretrained(clip)
    words.save_pretrained(clip)
    return folder


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The README's method, imported from a file of its own, and forgotten afterwards."""
    assert TOY is not None
    (tmp_path / "focus.py").write_text(TOY[1])
    monkeypatch.syspath_prepend(str(tmp_path))
    known = dict(registry._METHODS)
    yield importlib.import_module("focus")
    del sys.modules["focus"]
    registry._METHODS.clear()
    registry._METHODS.update(known)


def test_the_table_of_methods_is_that_of_the_declarations() -> None:
    assert renewed(TEXT, {"methods": methods_table}) == TEXT, "run python -m qmop.catalogue --write"
    assert all(f"| `{name}` |" in TEXT for name in qmop.list_compressors())


def test_every_method_has_its_costs() -> None:
    table = TEXT.partition("<!-- costs -->")[2].partition("<!-- /costs -->")[0]
    named = re.findall(r"^\| `([\w-]+)` \|", table, flags=re.MULTILINE)
    assert named == list(qmop.list_compressors()), "run python -m qmop.catalogue --write"


@pytest.mark.parametrize("name", ["mlp", "qmop", "recoverable", "visionzip"])
def test_a_cost_is_the_one_that_is_counted(name: str) -> None:
    row = cost_table([name]).splitlines()[-1]
    assert row.startswith(f"| `{name}` |")
    assert f"{row}\n" in TEXT, "run python -m qmop.catalogue --write"


@pytest.mark.soak  # builds every method at full size, without memory: a minute
def test_every_cost_is_the_one_that_is_counted() -> None:
    assert renewed(TEXT, {"costs": cost_table}) == TEXT, "run python -m qmop.catalogue --write"


def test_everything_that_may_be_read_is_explained() -> None:
    explained = re.findall(r"^\| `(\w+)` \| `(\w+)\.(\w+)`", TEXT, flags=re.MULTILINE)
    assert {name for name, _, _ in explained} == set(Reads.__args__)
    for _, holder, field in explained:
        assert field in {"features": VisualFeatures, "query": Query}[holder].__dataclass_fields__


def test_files_that_are_named_exist() -> None:
    root = README.parents[1]
    named = set(re.findall(r"`(tests/[\w/]+\.py)`", TEXT))
    assert len(named) >= 6
    assert all((root / name).is_file() for name in named)
    assert (README.parent / re.search(r"\]\((.*BENCHMARKS\.md)\)", TEXT)[1]).resolve().is_file()


@pytest.mark.parametrize("beginning", ["from_llava", "import compress", "build_compressor("])
def test_the_code_runs(models: Path, pictures: Pictures, capsys: pytest.CaptureFixture[str], beginning: str) -> None:
    code = block(beginning).replace("models/", f"{models}/")
    exec(compile(code, "README", "exec"), {"picture": pictures(1)[0]})
    said = capsys.readouterr().out
    if beginning == "from_llava":
        exec(
            compile(block("qmop.load").replace("models/", f"{models}/"), "README", "exec"), {"picture": pictures(1)[0]}
        )
        assert qmop.load(models / "mine")[0].config.compressor == "qmop"
    elif beginning == "build_compressor(":
        assert said == "torch.Size([2, 144, 1024])\n"
    else:
        assert said.strip()


def test_the_method_of_ones_own_does_what_it_says(toy: ModuleType) -> None:
    generator = torch.Generator().manual_seed(0)
    features = VisualFeatures(
        patches_BNC=torch.randn(2, 9, 4, generator=generator),
        grid=(3, 3),
        cls_attention_BN=torch.tensor([[9.0, 1, 2, 8, 0, 0, 0, 0, 1], [0, 0, 0, 0, 0, 0, 5, 5, 5]]),
    )
    compressor = qmop.build_compressor("focus", grid=3, width=4, tokens=3)
    assert isinstance(compressor, toy.Focus)
    compressed = compressor(features)
    assert compressed.kept_BM.tolist() == [[0, 3, -1], [6, 7, -1]]
    others = features.patches_BNC[0, [1, 2, 4, 5, 6, 7, 8]].mean(0)
    torch.testing.assert_close(compressed.tokens_BMC[0, 2], others)
    weighted = qmop.build_compressor("focus", grid=3, width=4, tokens=3, weighted=True)(features)
    share = torch.tensor([1.0, 2, 1]) / 4
    torch.testing.assert_close(weighted.tokens_BMC[0, 2], share @ features.patches_BNC[0, [1, 2, 8]])
    assert compressor(features, tokens=5).tokens_BMC.shape == (2, 5, 4)


def test_the_method_of_ones_own_is_known_everywhere(
    toy: ModuleType, pictures: Pictures, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exec(compile(block("import focus"), "README", "exec"), {"picture": pictures(1)[0]})
    assert "what is it" in capsys.readouterr().out
    assert qmop.list_compressors()["focus"] is toy.Focus.declaration
    assert "| `focus` | an example | `cls_attention` | - | - | fixed | yes |" in methods_table()
    model, processor = tiny_model("focus", 16), tiny_processor(16)
    batch: Any = processor(images=pictures(2), text=["<image> a", "<image> b"], padding=True, return_tensors="pt")
    assert torch.isfinite(model(**batch).logits).all()
    model.save_pretrained(tmp_path / "saved")
    processor.save_pretrained(tmp_path / "saved")
    again, _ = qmop.load(tmp_path / "saved")
    with torch.inference_mode():
        assert torch.equal(again(**batch).logits, model(**batch).logits)
    stock, words = stock_llava(), stock_processor()
    with compress(stock, "focus", tokens=16), torch.inference_mode():
        assert stock.generate(**mixed_batch(words), max_new_tokens=2).shape[0] == 3
