"""Signatures of states, with a key that every process reads in its own environment and that is never sent to any."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import platform
from typing import Any

KEY_VARIABLE = "QMOP_STATE_KEY"


def has_key() -> bool:
    """Whether this process signs states, and loads none that is not signed with its key.

    Raises:
        ValueError: if the variable is there and holds nothing, which would sign nothing and check nothing.
    """
    return _key() is not None


def require_key(*, signed: bool) -> None:
    """Refuse to go on in a process that lacks the key where the run was started with one.

    Raises:
        ValueError: naming the variable, the machine and the way out.
    """
    if signed and not has_key():
        raise ValueError(
            f"{KEY_VARIABLE} is set where this run was started, but not for the training process on {platform.node()}, "
            "which would load and write states unsigned: give Ray's processes on every machine the same key (before "
            "`ray start`, or in the pods' environment), or start the run without it"
        )


def signature(said: dict[str, Any]) -> str | None:
    """HMAC-SHA256 of what a card says, in hexadecimal; None without a key."""
    key = _key()
    return None if key is None else _hmac(said, key)


def check_signature(uri: str, said: dict[str, Any], found: object) -> None:
    """Refuse a card that is not signed with our key, where we have one.

    Raises:
        ValueError: naming the state and the variable.
    """
    key = _key()
    if key is None:
        return
    if not isinstance(found, str) or not hmac.compare_digest(found, _hmac(said, key)):
        raise ValueError(
            f"{uri} is not signed with the key in {KEY_VARIABLE}: it is another run's, or somebody changed it"
        )


def _key() -> str | None:
    key = os.environ.get(KEY_VARIABLE)
    if key is not None and not key.strip():
        raise ValueError(
            f"{KEY_VARIABLE} is set, but empty, so nothing would be signed: give it a key, or unset it to train "
            "without signatures"
        )
    return key


def _hmac(said: dict[str, Any], key: str) -> str:
    return hmac.new(key.encode(), json.dumps(said, sort_keys=True).encode(), hashlib.sha256).hexdigest()
