"""What `serve.py` says and in which order it acts; Ray itself is met in `test_serving_pipeline.py`."""

from __future__ import annotations

import io
import socket
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import GetTimeoutError

from cluster.ports import free_port
from cluster.progress import Progress
from pipelines.serving import serve
from pipelines.serving.recipe import ServeRecipe
from pipelines.serving.serve import Endpoint, serve_until_stopped

KEY = "0123456789abcdef"


@pytest.fixture(autouse=True)
def _no_key_of_the_surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QMOP_API_KEY", raising=False)


@pytest.fixture
def stopped(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A deployment that answers at once; what was stopped is listed."""
    acts: list[str] = []
    endpoint = Endpoint(url="http://127.0.0.1:8000/v1", api_key=KEY, model="best")
    monkeypatch.setattr(serve, "deploy", lambda *_: endpoint)
    monkeypatch.setattr(serve, "shutdown", lambda *_: acts.append("stopped"))
    return acts


def state(message: str, *replicas: tuple[str, int]) -> Any:
    deployment = SimpleNamespace(message=message, replica_states=dict(replicas))
    return SimpleNamespace(message="", status=SimpleNamespace(value="RUNNING"), deployments={"chat": deployment})


@pytest.mark.parametrize(
    ("fields", "variable", "shown"),
    [({}, None, 1), ({}, "", 1), ({"api_key": KEY}, None, 0), ({}, KEY, 0), ({"key_env": "OTHER_KEY"}, KEY, 1)],
)
def test_a_key_that_was_made_is_shown_once_and_ctrl_c_ends_quietly(
    stopped: list[str], monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any], variable: str | None, shown: int
) -> None:
    if variable is not None:
        monkeypatch.setenv("QMOP_API_KEY", variable)

    def interrupted(_progress: Progress) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(serve, "_watch", interrupted)
    log = io.StringIO()
    serve_until_stopped(ServeRecipe(checkpoint="run/best", **fields), Progress(log))
    assert log.getvalue().count(KEY) == shown
    assert stopped == ["stopped"]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """Nothing is started; the keys that would have been are listed."""
    keys: list[str | None] = []
    monkeypatch.setattr(serve, "_require_no_serve", lambda: None)
    monkeypatch.setattr(serve.capacity, "require", lambda **_: None)
    monkeypatch.setattr(serve, "_start", lambda _recipe, key, *_: keys.append(key))
    return keys


def deployed(**fields: Any) -> Endpoint:
    recipe = ServeRecipe(checkpoint="run/best", port=free_port(), **fields)
    return serve.deploy(recipe, Progress(io.StringIO()), lambda _: None)  # type: ignore[arg-type, return-value]


def test_the_key_comes_from_the_recipe_then_the_variable_then_chance(
    started: list[str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = [deployed().api_key for _ in range(2)]
    monkeypatch.setenv("QMOP_API_KEY", "v" * 16)
    monkeypatch.setenv("OTHER_KEY", "o" * 16)
    given = [deployed(**fields).api_key for fields in ({}, {"key_env": "OTHER_KEY"}, {"api_key": KEY})]
    assert given == ["v" * 16, "o" * 16, KEY]
    assert deployed(require_key=False).api_key is None
    assert len({*made}) == 2
    assert all(str(key).startswith("qmop-") and len(str(key)) > 40 for key in made)
    assert started == [*made, *given, None]


@pytest.mark.parametrize(
    ("key", "said"), [("short", "has 5 characters"), ("s" * 16 + "\n", "holds characters that no")]
)
def test_a_variable_with_a_key_that_is_no_good_is_named_and_the_key_is_not_said(
    started: list[str | None], monkeypatch: pytest.MonkeyPatch, key: str, said: str
) -> None:
    monkeypatch.setenv("MY_KEY", key)
    with pytest.raises(ValueError, match=f"^MY_KEY {said}") as caught:
        deployed(key_env="MY_KEY")
    assert key not in str(caught.value)
    assert not started


def test_a_service_that_dies_is_an_error_and_changes_are_told(
    stopped: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    states = [state("", ("RUNNING", 1)), state("", ("RUNNING", 1)), state("", ("STARTING", 1)), None]
    monkeypatch.setattr(serve, "_application", lambda: states.pop(0))
    monkeypatch.setattr(serve, "_WATCH_S", 0.0)
    log = io.StringIO()
    with pytest.raises(RuntimeError, match="stopped from elsewhere"):
        serve_until_stopped(ServeRecipe(checkpoint="run/best"), Progress(log))
    assert log.getvalue().count("The service is") == 1
    assert "1 starting" in log.getvalue()
    assert stopped == ["stopped"]


def test_the_reason_is_the_exceptions_own_line() -> None:
    trace = 'Traceback:\n  File "x.py", line 3\n    raise OSError("Error: no")\nValueError: no weights; export again\n'
    assert serve._reason(state(trace)) == "ValueError: no weights; export again"
    assert serve._reason(state("failed\nto   start")) == "failed to start"


@pytest.mark.parametrize(
    ("host", "netloc"),
    [("127.0.0.1", "127.0.0.1:8000"), ("0.0.0.0", "127.0.0.1:8000"), ("::", "[::1]:8000"), ("::1", "[::1]:8000")],
)
def test_an_address_is_one_that_a_client_can_use(host: str, netloc: str) -> None:
    assert serve._netloc(ServeRecipe(checkpoint="run/best", host=host)) == netloc


def test_stopping_waits_until_the_port_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: object, **__: object) -> None:
        raise ValueError("no controller")

    proxy = socket.create_server(("127.0.0.1", 0))
    looks: list[float] = []

    def sleep(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 3:
            proxy.close()

    monkeypatch.setattr(serve.ray, "get_actor", gone)
    monkeypatch.setattr(serve.serve, "shutdown", lambda: None)
    monkeypatch.setattr(serve, "time", SimpleNamespace(sleep=sleep, monotonic=serve.time.monotonic))
    serve.shutdown(ServeRecipe(checkpoint="run/best", port=proxy.getsockname()[1]), Progress(io.StringIO()))
    assert len(looks) == 3


class StubController:
    """Notes what it is asked, and when, on a clock that `sleep` moves; a silent one never replies."""

    def __init__(self, *, silent: bool = False) -> None:
        self.calls: list[str] = []
        self.now, self.silent, self.gone = 0.0, silent, False
        self.delete_apps = SimpleNamespace(remote=lambda names: self._called(f"delete {names[0]}"))
        self.graceful_shutdown = SimpleNamespace(remote=lambda *, wait: self._called(f"shut down, wait={wait}"))

    def _called(self, name: str) -> str:
        self.calls.append(f"{self.now:.0f} {name}")
        return name

    def get(self, name: str, timeout: float) -> None:
        if self.silent:
            raise GetTimeoutError(f"{name}: no answer within {timeout} s")
        self.gone = self.gone or name.startswith("shut")

    def actor(self, *_: object, **__: object) -> StubController:
        if self.gone:
            raise ValueError("no controller")
        return self

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.mark.parametrize(
    ("silent", "busy_s", "acts"),
    [
        (False, 100, ["0 delete qmop", "100 shut down, wait=False"]),  # as long as the last answer takes
        (False, 1e9, ["0 delete qmop", "360 shut down, wait=False"]),  # and no longer than drain_timeout_s allows
        (True, 0, ["0 delete qmop", "0 shut down, wait=False"]),
    ],
)
def test_replicas_end_before_the_proxy_does(
    monkeypatch: pytest.MonkeyPatch, silent: bool, busy_s: float, acts: list[str]
) -> None:
    stub, ends = StubController(silent=silent), []
    monkeypatch.setattr(serve.ray, "get_actor", stub.actor)
    monkeypatch.setattr(serve.ray, "get", stub.get)
    monkeypatch.setattr(serve.serve, "shutdown", lambda: ends.append(stub.now))
    monkeypatch.setattr(serve, "_application", lambda: object() if stub.now < busy_s else None)
    monkeypatch.setattr(serve, "_listens", lambda _: False)
    monkeypatch.setattr(serve, "time", SimpleNamespace(sleep=stub.sleep, monotonic=lambda: stub.now))
    serve.shutdown(ServeRecipe(checkpoint="run/best", drain_timeout_s=300), Progress(io.StringIO()))
    assert stub.calls == acts
    assert len(ends) == 1


def test_who_asks_twice_waits_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def again(_seconds: float) -> None:
        raise KeyboardInterrupt

    stub, waits = StubController(), []
    monkeypatch.setattr(serve.ray, "get_actor", stub.actor)
    monkeypatch.setattr(serve.ray, "get", stub.get)
    monkeypatch.setattr(serve.serve, "shutdown", lambda: waits.append("for the controller"))
    monkeypatch.setattr(serve, "_application", object)
    monkeypatch.setattr(serve, "time", SimpleNamespace(sleep=again, monotonic=lambda: 0.0))
    with pytest.raises(KeyboardInterrupt):
        serve.shutdown(ServeRecipe(checkpoint="run/best"), Progress(io.StringIO()))
    assert stub.calls == ["0 delete qmop", "0 shut down, wait=False"]
    assert not waits
