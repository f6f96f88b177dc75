from __future__ import annotations

from typing import Any

import pytest

from pipelines.serving.recipe import ServeRecipe, is_loopback


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"replicas": 0}, "replicas is 0"),
        ({"threads": 0}, "threads is 0"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"max_pixels": -1}, "max_pixels is -1"),
        ({"max_queued_requests": -1}, "max_queued_requests is -1"),
        ({"body_timeout_s": 0.0}, "body_timeout_s is 0.0"),
        ({"body_timeout_s": float("nan")}, "body_timeout_s is nan"),
        ({"stall_timeout_s": 0.0}, "stall_timeout_s is 0.0"),
        ({"num_cpus": 0.0}, "num_cpus is 0.0"),
        ({"num_cpus": float("nan")}, "num_cpus is nan"),
        ({"port": 0}, "port is 0"),
        ({"port": 70_000}, "port is 70000"),
        ({"replicas": 3, "max_replicas": 2}, "max_replicas is 2"),
        ({"api_key": "short"}, "api_key has 5 characters"),
        ({"api_key": "sixteen characters and more"}, "api_key holds"),
        ({"api_key": "s" * 16, "require_key": False}, "require_key is false"),
        ({"host": "0.0.0.0", "require_key": False}, "host is 0.0.0.0"),
    ],
)
def test_what_cannot_work_is_refused_by_name(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named) as caught:
        ServeRecipe(checkpoint="run/best", **fields)
    assert "\n" not in str(caught.value)


def test_a_key_never_shows_in_a_printed_recipe() -> None:
    assert "0123456789abcdef" not in repr(ServeRecipe(checkpoint="run/best", api_key="0123456789abcdef"))


def test_the_service_listens_on_this_machine_only_and_asks_for_a_key_unless_told_otherwise() -> None:
    recipe = ServeRecipe(checkpoint="run/best")
    assert (recipe.host, recipe.require_key) == ("127.0.0.1", True)


@pytest.mark.parametrize(("checkpoint", "name"), [("run/best", "best"), ("run/best/", "best"), ("best", "best")])
def test_a_model_is_called_after_its_folder(checkpoint: str, name: str) -> None:
    assert ServeRecipe(checkpoint=checkpoint).served_name == name
    assert ServeRecipe(checkpoint=checkpoint, model_name="mine").served_name == "mine"


def test_loopback_addresses_are_told_from_others() -> None:
    assert [is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "127.8.8.8")] == [True] * 4
    assert [is_loopback(host) for host in ("0.0.0.0", "::", "10.0.0.1", "example.org")] == [False] * 4
