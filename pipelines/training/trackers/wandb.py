"""Weights & Biases, configured by its own variables (WANDB_API_KEY, WANDB_PROJECT, WANDB_MODE, WANDB_BASE_URL ...).

W&B appends and cannot take back: steps that a resumed run counts again are left out (offline, of what an earlier
process wrote nothing is known). The run's id stands in the run's folder, so that a run that is deleted and begun anew
is a new one there as well.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Mapping
from typing import Any

from cluster.storage import absolute, exists, is_s3, join, read_bytes, write_atomic

PACKAGE = INSTALL = "wandb"
_OURS = "tracker-wandb.txt"
_PROJECT = "qmop"
_WITHOUT_KEY = ("offline", "disabled")


def open_tracker(output: str, run_name: str, say: Callable[[str], None]) -> WandB:
    """Go on with the run of an output, or begin one."""
    del say
    place = join(output, _OURS)
    if not exists(place):
        write_atomic(place, secrets.token_hex(8).encode())
    return WandB(read_bytes(place).decode().strip(), run_name, None if is_s3(output) else absolute(output))


class WandB:
    """One run of W&B.

    Args:
        identity: the run's id.
        run_name: how people find it.
        folder: local folder for W&B's own files; its usual place when None.

    Raises:
        ValueError: without a key.
        wandb.Error: if W&B cannot begin.
    """

    def __init__(self, identity: str, run_name: str, folder: str | None) -> None:
        import wandb  # noqa: PLC0415 - only where it is asked for

        # W&B would ask for a key at the terminal, and wait.
        if wandb.setup().settings.mode not in _WITHOUT_KEY and not wandb.login(prompt=False, verify=False):
            raise ValueError("W&B has no key: set WANDB_API_KEY, or WANDB_MODE=offline and run `wandb sync` later")
        self._run = wandb.init(
            id=identity,
            name=run_name,
            project=os.environ.get("WANDB_PROJECT", _PROJECT),
            dir=folder,
            resume="allow",
            settings=wandb.Settings(console="off", silent=True, disable_git=True),
        )
        self._last = int(self._run.step) - 1

    def facts(self, facts: Mapping[str, Any]) -> None:
        """The run's configuration; a machine's share of it may change when a run goes on."""
        self._run.config.update(dict(facts), allow_val_change=True)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Add a point to each curve, unless the step is there already."""
        if step > self._last:
            self._run.log(dict(values), step=step)
            self._last = step

    def close(self) -> None:
        """Send what is left."""
        self._run.finish()
