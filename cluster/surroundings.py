"""What Ray reads from its surroundings, held for a while and put back: environment variables and constants."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from ray._private import ray_constants
from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]


@contextmanager
def environment(changes: Mapping[str, str | None]) -> Iterator[None]:
    """Hold environment variables (None: absent) for the block, and put back what was there."""
    before = {name: os.environ.get(name) for name in changes}
    _set_variables(changes)
    try:
        yield
    finally:
        _set_variables(before)


def _set_variables(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    # Ray reads these once and keeps them: have it read again.
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


@contextmanager
def constants(**values: object) -> Iterator[None]:
    """Hold settings that Ray has no argument for and reads from the environment once, when it is imported."""
    before = {name: getattr(ray_constants, name) for name in values}
    try:
        for name, value in values.items():
            setattr(ray_constants, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(ray_constants, name, value)


def has_token() -> bool:
    """Whether a token is configured, by RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or the file ``~/.ray/auth_token``."""
    AuthenticationTokenLoader.instance().reset_cache()
    return bool(AuthenticationTokenLoader.instance().has_token(ignore_auth_mode=True))
