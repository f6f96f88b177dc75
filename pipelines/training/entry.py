"""Where a training process begins. Light on purpose: Ray Train's controller loads it too and has no use for models."""

from __future__ import annotations

from typing import TypedDict

import ray


class Sealed(TypedDict):
    """What Ray Train hands on unopened: a reference to the `LoopSettings`."""

    settings: ray.ObjectRef


def enter(sealed: Sealed) -> None:
    """Entry point of a training process under Ray Train."""
    from pipelines.training.loop import train_loop  # noqa: PLC0415 - with it come torch, transformers and deepspeed

    train_loop(ray.get(sealed["settings"]))
