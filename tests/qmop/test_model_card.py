from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from qmop.model_card import write_card
from qmop.tiny.assemble import tiny_model, tiny_processor


def saved(folder: Path, method: str, tokens: int | None = 16, **options: Any) -> Path:
    model = tiny_model(method, tokens, **options)
    model.save_pretrained(folder)
    tiny_processor(model.model.multi_modal_projector.token_count()).save_pretrained(folder)
    return folder


def front_matter(card: str) -> dict[str, Any]:
    return yaml.safe_load(re.match(r"---\n(.*?)\n---\n", card, re.DOTALL).group(1))


def rows(card: str) -> dict[str, str]:
    """The table of the card."""
    return dict(re.findall(r"^\| (.+?) \| (.+?) \|$", card, re.MULTILINE))


def test_the_front_matter_is_what_the_hub_reads(tmp_path: Path) -> None:
    path = write_card(
        saved(tmp_path / "it", "qmop"),
        name="someone/qmop-144",
        base_model=["llava-hf/llava-1.5-7b-hf", "openai/clip-vit-large-patch14-336"],
        datasets="liuhaotian/LLaVA-Instruct-150K",
        license="apache-2.0",
    )
    assert path == tmp_path / "it" / "README.md"
    assert front_matter(path.read_text()) == {
        "library_name": "qmop",
        "pipeline_tag": "image-text-to-text",
        "base_model": ["llava-hf/llava-1.5-7b-hf", "openai/clip-vit-large-patch14-336"],
        "datasets": ["liuhaotian/LLaVA-Instruct-150K"],
        "license": "apache-2.0",
        "tags": ["qmop", "llava", "visual-token-compression", "text-guided"],
    }


def test_method_budget_and_declaration_are_told(tmp_path: Path) -> None:
    card = write_card(
        saved(tmp_path / "it", "prune", 20, lam=0.25), notes="## Results\n\nmeasured at tiny size"
    ).read_text()
    told = rows(card)
    assert told["method"].startswith("`prune` (QMoP, arXiv 2603.21232")
    assert told["visual tokens per image"] == "20 of 144"
    assert told["its fields"] == "`lam=0.25`"
    assert told["reads beside the patches"] == "`cls_attention`, `query`, `text_space`"
    assert told["the question guides it"] == "yes"
    assert told["has parameters of its own to train"] == "no"
    assert told["vision tower"] == "`clip_vision_model`, 96 pixels"
    assert card.startswith("---\n")
    assert "\n# it\n" in card
    assert card.endswith("## Results\n\nmeasured at tiny size\n")
    assert str(tmp_path) not in card


def test_what_is_left_out_leaves_no_trace(tmp_path: Path) -> None:
    card = write_card(saved(tmp_path / "it", "mlp", None)).read_text()
    assert front_matter(card)["tags"] == ["qmop", "llava", "visual-token-compression", "mlp"]
    assert set(front_matter(card)) == {"library_name", "pipeline_tag", "tags"}
    assert rows(card)["visual tokens per image"] == "144 of 144"
    assert rows(card)["reads beside the patches"] == "nothing"


def test_its_five_lines_answer_a_question(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    card = write_card(saved(tmp_path / "it", "qmop")).read_text()
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL).group(1)
    assert len(code.splitlines()) == 5
    assert max(map(len, code.splitlines())) <= 120
    monkeypatch.chdir(tmp_path)
    Image.effect_noise((120, 96), 60).convert("RGB").save("photo.png")
    exec(code, {})
    assert capsys.readouterr().out.endswith("\n")


@pytest.mark.parametrize("field", ["base_model", "datasets"])
def test_a_path_is_no_name_of_the_hub(tmp_path: Path, field: str) -> None:
    folder = saved(tmp_path / "it", "average_pool")
    with pytest.raises(ValueError, match=f"{field} is '/home/me/llava', but a card names what lies on the hub"):
        write_card(folder, **{field: "/home/me/llava"})


def test_another_folder_than_a_models_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no model"):
        write_card(tmp_path)
    folder = saved(tmp_path / "it", "average_pool")
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"model_type": "qmop"', '"model_type": "llava"'))
    with pytest.raises(ValueError, match="holds a llava model, and a card is written for qmop models only"):
        write_card(folder)
