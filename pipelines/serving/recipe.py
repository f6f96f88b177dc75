"""What a person decides about a service; everything here is read from YAML and dotted overrides."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from cluster.bounds import require_above, require_at_least
from cluster.session import RaySettings

_SHORTEST_KEY = 16
_HIGHEST_PORT = 65_535


@dataclass(frozen=True, kw_only=True)
class ServeRecipe:
    """How one checkpoint is offered over HTTP.

    Args:
        checkpoint: folder of an exported checkpoint (config.json, safetensors, processor), here or `s3://bucket/...`.
        model_name: the name that clients ask for; the folder's own name when absent.
        host: address to listen on. Anything but a loopback address needs `require_key`.
        port: TCP port to listen on.
        require_key: whether requests must carry the API key as a bearer token.
        key_env: environment variable that holds the key; where it is empty or absent, a random key is made and shown
            once.
        api_key: the key itself, before `key_env`. Other users of the machine read a command line, and the shell keeps
            it: prefer `key_env`.
        replicas: copies of the model that always run.
        max_replicas: when above `replicas`, Serve adds copies up to this number under load.
        num_cpus: logical CPUs that each replica reserves in Ray.
        num_gpus: GPUs, or a share of one, that each replica reserves in Ray.
        threads: CPU threads that torch uses in each replica.
        max_new_tokens: most tokens of one answer; a request that asks for more gets this many.
        max_body_bytes: largest request body; larger ones get 413 before they are parsed.
        body_timeout_s: seconds in which a request's body must have come; slower ones get 408.
        max_image_bytes: largest image after base64 decoding.
        max_pixels: largest width times height of an image, read from its header.
        max_images: most images in one conversation.
        max_queued_requests: requests that may wait in one replica or be uploaded to it; more get 429.
        start_timeout_s: seconds until the replicas must have answered their warm-up question, after fetching the
            checkpoint if it is in S3.
        stall_timeout_s: seconds that the model may work without a new piece of text; a replica whose model is silent
            for longer is replaced. The slowest first token, behind the longest prompt, must fit in.
        drain_timeout_s: seconds that answers in flight get when a replica or the service is stopped.
        ray: how to reach or start Ray.
    """

    checkpoint: str
    model_name: str | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    require_key: bool = True
    key_env: str = "QMOP_API_KEY"
    api_key: str | None = field(default=None, repr=False)
    replicas: int = 1
    max_replicas: int | None = None
    num_cpus: float = 1.0
    num_gpus: float = 0.0
    threads: int = 1
    max_new_tokens: int = 256
    max_body_bytes: int = 20_000_000
    body_timeout_s: float = 30.0
    max_image_bytes: int = 10_000_000
    max_pixels: int = 40_000_000
    max_images: int = 1
    max_queued_requests: int = 32
    start_timeout_s: float = 300.0
    stall_timeout_s: float = 300.0
    drain_timeout_s: float = 30.0
    ray: RaySettings = field(default_factory=RaySettings)

    def __post_init__(self) -> None:
        """Refuse values that cannot work.

        Raises:
            ValueError: naming the field, its value and the way out.
        """
        sizes = ("max_new_tokens", "max_body_bytes", "max_image_bytes", "max_pixels")
        require_at_least(self, 1, "replicas", "threads", *sizes)
        require_at_least(self, 0, "num_gpus", "max_images", "max_queued_requests", "start_timeout_s", "drain_timeout_s")
        require_above(self, 0, "body_timeout_s", "stall_timeout_s")
        if not self.num_cpus > 0:
            raise ValueError(f"num_cpus is {self.num_cpus}, but a replica needs a share of a CPU: give e.g. 0.5.")
        if not 1 <= self.port <= _HIGHEST_PORT:
            raise ValueError(f"port is {self.port}, but ports go from 1 to {_HIGHEST_PORT}: give one of those.")
        require_at_least(self, self.replicas, "max_replicas")
        self._check_access()

    @property
    def served_name(self) -> str:
        """The model name that clients ask for."""
        return self.model_name or PurePosixPath(self.checkpoint.rstrip("/")).name or "qmop"

    def _check_access(self) -> None:
        if self.api_key is not None:
            check_key("api_key", self.api_key)
        if not self.require_key and self.api_key is not None:
            raise ValueError("api_key is given but require_key is false: leave one of them out.")
        if not self.require_key and not is_loopback(self.host):
            raise ValueError(
                f"host is {self.host}, which other machines reach, and require_key is false: "
                "set require_key to true, or host to 127.0.0.1."
            )


def check_key(name: str, key: str) -> None:
    """Refuse a key that is no good.

    Args:
        name: where it comes from, for what is said.
        key: the key, which is not said.

    Raises:
        ValueError: if it can be guessed, or no HTTP header carries it.
    """
    if len(key) < _SHORTEST_KEY:
        raise ValueError(
            f"{name} has {len(key)} characters, which can be guessed: give at least {_SHORTEST_KEY}, or leave it out "
            "to get a random one."
        )
    if not all("!" <= letter <= "~" for letter in key):
        raise ValueError(f"{name} holds characters that no HTTP header carries: use printable ASCII without spaces.")


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
