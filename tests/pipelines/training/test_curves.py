import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.training.curves import curves, in_order


def step(stage: str, number: int, loss: float, **more: object) -> dict[str, object]:
    steps = {"align": 30, "tune": 100}[stage]
    return {"kind": "step", "stage": stage, "step": number, "steps": steps, "loss": loss, **more}


def test_stages_follow_one_another_and_what_was_gone_back_over_is_forgotten() -> None:
    told = [("align", 10, 5.0), ("align", 30, 4.0), ("tune", 10, 3.0), ("tune", 20, 2.0), ("tune", 25, 1.9)]
    again = [("tune", 15, 2.5), ("tune", 20, 2.1)]  # resumed after step 12, with a shorter interval between notes
    kept, starts = in_order(step(*note) for note in told + again)
    assert {at: note["loss"] for at, note in kept.items()} == {10: 5.0, 30: 4.0, 40: 3.0, 45: 2.5, 50: 2.1}
    assert starts == {"align": 0, "tune": 30}


def test_a_run_of_the_second_stage_alone_begins_at_nought() -> None:
    kept, _ = in_order([step("tune", 10, 1.0)])
    assert list(kept) == [10]


def _picture(place: Path, notes: list[dict[str, object]]) -> np.ndarray:
    place.write_text("".join(json.dumps(note) + "\n" for note in notes))
    return np.asarray(Image.open(io.BytesIO(curves(place))).convert("RGB"))


def test_the_picture_has_a_row_of_fields_more_with_a_router(tmp_path: Path) -> None:
    plain = [step("align", n, 5 / n, grad_norm=1.0, rates={"projector": 1e-3}) for n in (10, 20, 30)]
    routed = [
        step("tune", n, 1 / n, temperature=2.0, noise=0.5, branch_weights=[0.2, 0.3, 0.5], router_entropy=math.log(3))
        for n in (10, 20)
    ]
    extra = [{"kind": "export", "name": "x", "digest": "y"}]
    small, large = _picture(tmp_path / "a.jsonl", plain), _picture(tmp_path / "b.jsonl", [*plain, *extra, *routed])
    assert small.shape == (520, 1080, 3)
    assert large.shape == (780, 1080, 3)
    bottom = large[520:]
    colours = {tuple(colour) for colour in bottom.reshape(-1, 3)}
    assert (0x2B, 0x7B, 0xBA) in colours, "the entropy's curve is missing"


def test_metrics_without_steps_are_refused(tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_text('{"kind": "export", "name": "x", "digest": "y"}\n')
    with pytest.raises(ValueError, match="notes no step: train for"):
        curves(tmp_path / "m.jsonl")
