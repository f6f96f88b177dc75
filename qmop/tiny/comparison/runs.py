"""Units of a comparison: each runs by itself, and is kept as one Parquet file as soon as it is finished."""

from __future__ import annotations

import json
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import torch
import transformers

from qmop.tiny.comparison.material import Material, base_digest, make_material
from qmop.tiny.comparison.rows import Settings, Unit
from qmop.tiny.comparison.student import Student, enrol, see, tune
from qmop.vtcbench.records import Record, judge, read_parquet, to_parquet_bytes
from qmop.whole_files import write_whole

_ANSWERED_AT_ONCE = 100
_opened: dict[str, Material] = {}


def result_path(folder: Path, settings: Settings, unit: Unit, digest: str) -> Path:
    """Where a unit's records are kept; other settings or another base have another name."""
    name = f"{unit.row.name}-{unit.tokens}-{unit.seed}".replace(" ", "-").replace(":", "")
    return folder / "units" / f"{name}-{unit.digest(settings, digest)[:12]}.parquet"


def unfinished(folder: Path, settings: Settings, units: Sequence[Unit], digest: str) -> list[Unit]:
    """The units that have no records yet."""
    return [unit for unit in units if not result_path(folder, settings, unit, digest).is_file()]


def finished(folder: Path, settings: Settings, units: Sequence[Unit], digest: str) -> list[tuple[Unit, list[Record]]]:
    """The units that have records, and these."""
    paths = [(unit, result_path(folder, settings, unit, digest)) for unit in units]
    return [(unit, read_parquet(path)) for unit, path in paths if path.is_file()]


def run_all(
    folder: Path, settings: Settings, units: Sequence[Unit], workers: int, say: Callable[[str], None]
) -> Iterator[Unit]:
    """Run what is unfinished, several at a time, and yield each unit when its records are kept.

    Args:
        folder: of the comparison.
        settings: of the comparison.
        units: all that are wanted.
        workers: processes, of one thread each.
        say: told about progress.
    """
    digest = base_digest(settings)
    left = unfinished(folder, settings, units, digest)
    if not left:
        return
    torch.set_num_threads(max(1, workers))
    make_material(
        settings,
        folder / "material",
        say,
        list({(unit.row.name, unit.tokens): (unit.row, unit.tokens) for unit in left}.values()),
    )
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_enter) as pool:
        running = {pool.submit(run_unit, folder, settings, unit, digest): unit for unit in left}
        try:
            for future in as_completed(running):
                future.result()
                yield running[future]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def run_unit(folder: Path, settings: Settings, unit: Unit, digest: str) -> None:
    """Tune, answer, keep the records."""
    key = json.dumps([str(folder), repr(settings)])
    if key not in _opened:
        _opened.clear()
        _opened[key] = make_material(settings, folder / "material", lambda _: None)
    material, started = _opened[key], time.process_time()
    student = enrol(settings, unit)
    tune(student, settings, unit, material, lambda _: None)
    records = examine(student, unit, material, unit.digest(settings, digest), time.process_time() - started)
    write_whole(result_path(folder, settings, unit, digest), to_parquet_bytes(records))


def examine(student: Student, unit: Unit, material: Material, digest: str, seconds: float) -> list[Record]:
    """The records of all items; each carries its share of the CPU seconds that tuning took."""
    pairs = [row[0] for row in material.exam.by_picture]
    records = []
    for first in range(0, len(pairs), _ANSWERED_AT_ONCE):
        part = slice(first, first + _ANSWERED_AT_ONCE)
        seen = see(material.exam, pairs[part], student, unit.row)
        told, compressed = student.answers(seen, pairs[part])
        weights = compressed.branch_weights_BS
        for place, (item, answer) in enumerate(zip(material.items[part], told, strict=True)):
            records.append(
                judge(
                    item,
                    answer.strip(),
                    checkpoint=digest,
                    label=unit.label,
                    method=unit.row.name,
                    budget=unit.tokens,
                    visual_tokens=int(compressed.counts_B[place]),
                    suite_digest=material.suite.digest,
                    shard="",
                    branch_weights=None if weights is None else tuple(weights[place].tolist()),
                    seconds=seconds / len(pairs),
                )
            )
    return records


def _enter() -> None:
    """What a process of the pool is: one thread, no bars, and gone with the one that began it, however that ends."""
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
