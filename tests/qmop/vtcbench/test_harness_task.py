from __future__ import annotations

import importlib.util
import io
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from qmop.vtcbench.harness_task import SCORERS, TEMPLATE, UTILS, write_task
from qmop.vtcbench.records import judge
from qmop.vtcbench.rendered import RenderedItem

CODES = ("gu", "sc", "rc", "se", "ld")


@pytest.fixture
def folder(small_suite: list[RenderedItem], tmp_path: Path) -> Path:
    tasks = write_task(small_suite, "the-digest", lambda name, data: _put(tmp_path / name, data))
    assert tasks == {f"vtcbench_{code}": 8 for code in CODES}
    return tmp_path


def _put(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def _module(path: Path) -> ModuleType:
    """A module by its path and in no table of modules, as lmms-eval loads one."""
    spec = importlib.util.spec_from_file_location("utils", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _config(path: Path) -> dict[str, Any]:
    """A task file as lmms-eval reads it: functions by name, the included file below the own fields."""

    class Loader(yaml.SafeLoader):
        pass

    def function(_: yaml.SafeLoader, node: yaml.ScalarNode) -> Callable[..., Any]:
        module, name = node.value.split(".")
        found: Callable[..., Any] = getattr(_module(path.with_name(f"{module}.py")), name)
        return found

    Loader.add_constructor("!function", function)  # type: ignore[type-var]
    own = yaml.load(path.read_text(), Loader)
    shared = _config(path.with_name(own.pop("include"))) if "include" in own else {}
    return {**shared, **own}


def _docs(path: Path) -> list[dict[str, Any]]:
    rows = pq.read_table(path).to_pylist()
    return [{**row, "image": Image.open(io.BytesIO(row["image"]["bytes"]))} for row in rows]


def test_the_group_weighs_its_tasks_by_their_items(folder: Path) -> None:
    group = _config(folder / "vtcbench.yaml")

    assert group["group"] == "vtcbench"
    assert group["task"] == [f"vtcbench_{code}" for code in CODES]
    assert all(metric["weight_by_size"] for metric in group["aggregate_metric_list"])
    assert group["metadata"]["suite"] == "the-digest"
    assert {path.name for path in folder.iterdir()} == {
        TEMPLATE,
        UTILS,
        SCORERS,
        "vtcbench.yaml",
        *(f"vtcbench_{code}.{end}" for code in CODES for end in ("yaml", "parquet")),
    }


def test_the_tasks_score_as_our_own_evaluation_does(folder: Path, small_suite: list[RenderedItem]) -> None:
    known = {rendered.item.key: rendered for rendered in small_suite}
    facts = {"checkpoint": "c", "label": "l", "method": "m", "budget": 1, "visual_tokens": 1, "suite_digest": "d"}
    seen = 0
    for code in CODES:
        task = _config(folder / f"vtcbench_{code}.yaml")
        assert task["task"] == f"vtcbench_{code}"
        for place, doc in enumerate(_docs(folder / task["dataset_kwargs"]["data_files"]["test"])):
            rendered = known[doc["key"]]
            said = (rendered.item.answers[0], f"{rendered.item.choices[-1]}.", "nothing of these")[place % 3]
            ours, theirs = judge(rendered.item, said, shard="s", **facts), task["process_results"](doc, [said])
            assert (theirs["acc"], theirs["unparsable"]) == (ours.score, float(not ours.parsable))
            assert task["doc_to_text"](doc).startswith(f"{rendered.item.question}\n")
            assert task["doc_to_target"](doc) == rendered.item.answers[0]
            (picture,) = task["doc_to_visual"](doc)
            assert picture.tobytes() == Image.open(io.BytesIO(rendered.image)).convert("RGB").tobytes()
            seen += 1
    assert seen == 40


def test_levels_are_metrics_where_there_are_several(folder: Path, tmp_path: Path) -> None:
    from qmop.vtcbench.rendered import suite  # noqa: PLC0415 - a larger suite than the fixture's, for this test alone

    home = tmp_path / "levels"
    home.mkdir()
    write_task(suite(0, 100), "d", lambda name, data: _put(home / name, data))
    metrics = {m["metric"]: m["aggregation"] for m in _config(home / "vtcbench_ld.yaml")["metric_list"]}

    assert list(metrics) == ["acc", "unparsable", "acc_core", "acc_hard", "acc_held_out"]
    assert metrics["acc_hard"]([("hard", 1.0), ("core", 0.0)]) == 1.0
    assert [m["metric"] for m in _config(folder / "vtcbench_ld.yaml")["metric_list"]] == ["acc", "unparsable"]


def test_what_is_written_needs_nothing_of_ours(folder: Path) -> None:
    for name in (UTILS, SCORERS):
        assert "qmop" not in (folder / name).read_text()


def test_the_columns_say_what_they_are_to_datasets(folder: Path) -> None:
    table = pq.read_schema(folder / "vtcbench_ld.parquet")

    assert b'"image": {"_type": "Image"}' in table.metadata[b"huggingface"]


def test_a_suite_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="the suite has no items"):
        write_task([], "d", lambda *_: None)
