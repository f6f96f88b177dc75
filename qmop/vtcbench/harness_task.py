"""A suite as tasks of lmms-eval, with which it judges any model of its own: a folder that needs nothing else of ours.

`vtcbench` is a group of one task per dimension. Scores are by our own rules, whose source goes along; an item is asked
in our words, and rendered ones name their choices, which a model of another's training cannot know.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from qmop.vtcbench import harness_utils, scorers
from qmop.vtcbench.grouping import by_level
from qmop.vtcbench.items import DIMENSIONS, UNLABELLED
from qmop.vtcbench.lmms_eval import GROUP
from qmop.vtcbench.rendered import RenderedItem
from qmop.vtcbench.shards import picture_kind

TEMPLATE = f"_{GROUP}_template_yaml"
"""Without an ending, so that lmms-eval takes it for no task."""
UTILS, SCORERS = "utils.py", "vtcbench_scorers.py"
_ROW_GROUP = 100
_TEXTS = ("key", "question", "dimension", "task", "source", "scorer", "level")
_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in _TEXTS),
        ("answers", pa.list_(pa.string())),
        ("choices", pa.list_(pa.string())),
        ("difficulty", pa.float64()),
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
    ]
)
_TEXT = {"dtype": "string", "_type": "Value"}
_FEATURES = {
    **dict.fromkeys(_TEXTS, _TEXT),
    "answers": {"feature": _TEXT, "_type": "Sequence"},
    "choices": {"feature": _TEXT, "_type": "Sequence"},
    "difficulty": {"dtype": "float64", "_type": "Value"},
    "image": {"_type": "Image"},
}
"""What the columns are to Hugging Face datasets: without it a picture would be a record of bytes."""

Write = Callable[[str, bytes], None]


def write_task(items: Iterable[RenderedItem], digest: str, write: Write, *, max_new_tokens: int = 32) -> dict[str, int]:
    """Write a suite as a folder of tasks.

    Args:
        items: of the suite.
        digest: of the suite, written into the task files.
        write: takes a file's name and its bytes.
        max_new_tokens: longest answer.

    Returns:
        Items by task.

    Raises:
        ValueError: if there are no items.
    """
    groups: dict[str, list[RenderedItem]] = {}
    for rendered in items:
        groups.setdefault(rendered.item.dimension, []).append(rendered)
    if not groups:
        raise ValueError("the suite has no items: there is nothing to write a task of")
    tasks = {f"{GROUP}_{code.lower()}": groups[code] for code in (*DIMENSIONS, UNLABELLED) if code in groups}
    for task, members in tasks.items():
        write(f"{task}.parquet", _parquet(members))
        write(f"{task}.yaml", _yaml(_task(task)))
    levels = by_level({rendered.item.level: 0 for members in tasks.values() for rendered in members})
    write(TEMPLATE, _yaml(_shared(digest, list(levels), max_new_tokens)))
    write(f"{GROUP}.yaml", _yaml(_group(list(tasks), digest)))
    write(UTILS, utils_source().encode())
    write(SCORERS, scorers_source().encode())
    return {task: len(members) for task, members in tasks.items()}


def utils_source() -> str:
    """Source of the functions that the task files name; lmms-eval loads it by its path, so it finds its sibling so."""
    return _exchanged(
        inspect.getsource(harness_utils),
        "from qmop.vtcbench.scorers import SCORERS\n",
        "import importlib.util\nimport sys\nfrom pathlib import Path\n\n"
        f'_place = Path(__file__).with_name("{SCORERS}")\n'
        '_spec = importlib.util.spec_from_file_location("vtcbench_scorers", _place)\n'
        "_scorers = importlib.util.module_from_spec(_spec)\n"
        "sys.modules[_spec.name] = _scorers  # its dataclass looks itself up there\n"
        "_spec.loader.exec_module(_scorers)\n"
        "SCORERS = _scorers.SCORERS\n",
    )


def scorers_source() -> str:
    """Source of the scoring rules, which then need nothing of ours."""
    own = "from qmop.vtcbench.items import Item\n"
    return _exchanged(inspect.getsource(scorers), own, "from typing import Any as Item\n")


def _exchanged(source: str, line: str, other: str) -> str:
    assert source.count(line) == 1, f"the source no longer has {line!r}"
    return source.replace(line, other)


class _Function(str):
    """A function by its name, which YAML marks for lmms-eval."""

    __slots__ = ()


class _Dumper(yaml.SafeDumper):
    """Writes `!function utils.name`."""


_Dumper.add_representer(_Function, lambda dumper, name: dumper.represent_scalar("!function", str(name)))


def _yaml(content: Mapping[str, Any]) -> bytes:
    return yaml.dump(dict(content), Dumper=_Dumper, sort_keys=False, width=120).encode()


def _shared(digest: str, levels: list[str], max_new_tokens: int) -> dict[str, Any]:
    metrics: list[dict[str, Any]] = [
        {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
        {"metric": "unparsable", "aggregation": "mean", "higher_is_better": False},
    ]
    if len(levels) > 1:
        metrics += [
            {"metric": f"acc_{level}", "aggregation": _Function(f"utils.{level}"), "higher_is_better": True}
            for level in levels
        ]
    names = ("doc_to_visual", "doc_to_text", "doc_to_target", "process_results")
    return {
        "dataset_path": "parquet",
        "test_split": "test",
        "output_type": "generate_until",
        **{name: _Function(f"utils.{name}") for name in names},
        "generation_kwargs": {"max_new_tokens": max_new_tokens, "temperature": 0, "do_sample": False, "num_beams": 1},
        "metric_list": metrics,
        "lmms_eval_specific_kwargs": {"default": {"options": True}, "qmop": {"options": False}},
        "metadata": {"version": 1.0, "suite": digest},
    }


def _task(name: str) -> dict[str, Any]:
    return {"include": TEMPLATE, "task": name, "dataset_kwargs": {"data_files": {"test": f"{name}.parquet"}}}


def _group(tasks: list[str], digest: str) -> dict[str, Any]:
    metrics = [{"metric": name, "aggregation": "mean", "weight_by_size": True} for name in ("acc", "unparsable")]
    return {
        "group": GROUP,
        "task": tasks,
        "aggregate_metric_list": metrics,
        "metadata": {"version": 1.0, "suite": digest},
    }


def _parquet(items: Iterable[RenderedItem]) -> bytes:
    rows = [
        {
            **{name: getattr(rendered.item, name) for name in (*_TEXTS, "difficulty")},
            "answers": list(rendered.item.answers),
            "choices": list(rendered.item.choices),
            "image": {"bytes": rendered.image, "path": f"{rendered.item.key}.{picture_kind(rendered.image)}"},
        }
        for rendered in items
    ]
    features = json.dumps({"info": {"features": _FEATURES}})
    table = pa.Table.from_pylist(rows, schema=_SCHEMA.with_metadata({"huggingface": features}))
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", row_group_size=_ROW_GROUP)
    return sink.getvalue().to_pybytes()
