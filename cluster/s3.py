"""S3 and its look-alikes through s3fs and pyarrow: set up by the usual AWS variables, failing within seconds.

Storage is opened through ``cluster.storage``; this file only holds what is particular to S3. Whoever works on local
paths is spared the third of a second that s3fs and what it stands on take to be imported.
"""

from __future__ import annotations

import http.client
import os
import ssl
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pyarrow.fs as pafs

from cluster.failures import RefusedError, StorageError

if TYPE_CHECKING:
    import s3fs

_CONNECT_S = 3.0
_READ_S = 20.0
_ATTEMPTS = 2
_READS = 10

_OUTRUN = {"PreconditionFailed", "ConditionalRequestConflict", "NoSuchKey", "412", "409", "404"}
"""What S3 says to a conditional upload that came too late."""

_reached: set[str] = set()
_reached_lock = threading.Lock()


def endpoint() -> str | None:
    """The S3 endpoint URL that the environment names, or None for Amazon's own.

    Raises:
        ValueError: if the variable does not hold an http(s) URL.
    """
    name = "AWS_ENDPOINT_URL_S3" if os.environ.get("AWS_ENDPOINT_URL_S3") else "AWS_ENDPOINT_URL"
    url = os.environ.get(name, "").rstrip("/")
    if not url:
        return None
    if urlsplit(url).scheme not in {"http", "https"} or not urlsplit(url).hostname:
        raise ValueError(f"{name}={url!r} is not an endpoint: write it as http://host:port or https://host.")
    return url


def filesystem() -> s3fs.S3FileSystem:
    """The s3fs file system of the present environment, after a look whether its endpoint answers.

    Raises:
        StorageError: if nothing listens at the endpoint.
    """
    import s3fs  # noqa: PLC0415

    url = endpoint()
    _probe(url)
    fs = s3fs.S3FileSystem(
        endpoint_url=url,
        use_listings_cache=False,
        config_kwargs={
            "connect_timeout": _CONNECT_S,
            "read_timeout": _READ_S,
            "retries": {"max_attempts": _ATTEMPTS, "mode": "standard"},
        },
    )
    # s3fs wraps its own loop around botocore's retries: five times the connect time-out is too long to wait.
    fs.retries = _ATTEMPTS
    return fs


def arrow() -> pafs.S3FileSystem:
    """The same place as a pyarrow file system.

    Raises:
        StorageError: if nothing listens at the endpoint.
    """
    url = endpoint()
    _probe(url)
    options: dict[str, Any] = {}
    if url is not None:
        options = {"endpoint_override": url.split("://", 1)[1], "scheme": urlsplit(url).scheme}
    if region := os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"):
        options["region"] = region
    return pafs.S3FileSystem(
        connect_timeout=_CONNECT_S,
        request_timeout=_READ_S,
        retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=_ATTEMPTS),
        **options,
    )


def sizes(key: str, recursive: bool) -> dict[str, int]:
    """The objects under a prefix, as full URIs, each with its size in bytes.

    Raises:
        FileNotFoundError: if there is no such prefix.
    """
    return {name: int(info["size"]) for name, info in _found(key, recursive).items()}


def stamps(key: str, recursive: bool) -> dict[str, str]:
    """The objects under a prefix, as full URIs, each with what changes when it does.

    Raises:
        FileNotFoundError: if there is no such prefix.
    """
    return {
        name: f"{info['size']}-{info.get('LastModified')}-{info.get('ETag')}"
        for name, info in _found(key, recursive).items()
    }


def _found(key: str, recursive: bool) -> dict[str, dict[str, Any]]:
    fs = filesystem()
    found = fs.find(key, maxdepth=None if recursive else 1, detail=True)
    if not found and not fs.exists(key):
        raise FileNotFoundError
    # A name that ends in a slash is a marker that some tools leave for an empty folder.
    return {f"s3://{name}": info for name, info in found.items() if not name.endswith("/")}


def create_if_absent(key: str, data: bytes) -> bool:
    """Create an object unless it exists; whether it was created."""
    try:
        filesystem().pipe_file(key, data, mode="create")
    except FileExistsError:
        return False
    return True


def read_versioned(key: str) -> tuple[bytes, str]:
    """An object and its entity tag, both of one moment.

    Raises:
        FileNotFoundError: if there is none.
        StorageError: if it is written faster than it can be read.
    """
    fs = filesystem()
    for _ in range(_READS):
        tag = fs.info(key)["ETag"]
        data: bytes = fs.cat_file(key)
        if fs.info(key)["ETag"] == tag:
            return data, str(tag)
    raise StorageError(f"s3://{key} changed {_READS} times while it was read: try again.")


def replace_if_match(key: str, data: bytes, tag: str) -> str | None:
    """See ``cluster.storage``."""
    from botocore.exceptions import ClientError  # type: ignore[import-untyped]  # noqa: PLC0415

    try:
        written = filesystem().pipe_file(key, data, IfMatch=tag)
    except OSError as error:
        cause = error.__cause__
        if isinstance(cause, ClientError) and cause.response["Error"].get("Code") in _OUTRUN:
            return None
        raise
    return str(written["ETag"])


@contextmanager
def explained(uri: str) -> Iterator[None]:
    """Turn what s3fs and botocore raise about ``uri`` into one sentence.

    Raises:
        FileNotFoundError: if the object, prefix or bucket does not exist.
        RefusedError: if credentials are missing or refused.
        StorageError: if the endpoint went away, perhaps in mid-sentence.
    """
    import aiohttp  # noqa: PLC0415
    from botocore.exceptions import BotoCoreError, NoCredentialsError  # noqa: PLC0415

    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{uri} does not exist (no such object, prefix or bucket).") from error
    except NoCredentialsError as error:
        raise RefusedError(
            f"{uri} needs credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or AWS_PROFILE."
        ) from error
    except PermissionError as error:
        raise RefusedError(f"{uri} refuses us ({error}): check the AWS credentials and the bucket's policy.") from error
    except BotoCoreError as error:
        where = endpoint() or "Amazon S3"
        _forget(where)
        raise StorageError(f"{uri} cannot be reached at {where}: {error}.".replace("..", ".")) from error
    except aiohttp.ClientError as error:  # s3fs tries again before a body has begun, not when it breaks off
        raise StorageError(f"{uri} broke off on its way from {endpoint() or 'Amazon S3'}: {error}.") from error


def _probe(url: str | None) -> None:
    if url is None or _uses_proxy(url):
        return
    with _reached_lock:
        if url in _reached:
            return
    try:
        _ask(url)
    except (OSError, http.client.HTTPException) as error:
        raise StorageError(
            f"The S3 endpoint {url} does not answer ({error or type(error).__name__}): "
            "start it or correct AWS_ENDPOINT_URL."
        ) from error
    with _reached_lock:
        _reached.add(url)


def _ask(url: str) -> None:
    """Any answer will do: a server that accepts connections and then says nothing would hold every request for long."""
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.netloc, timeout=_CONNECT_S)
    try:
        connection.request("HEAD", "/")
        connection.getresponse()
    except ssl.SSLError:
        return  # whether to trust the certificate is decided where AWS_CA_BUNDLE is read
    finally:
        connection.close()


def _uses_proxy(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(str(parts.hostname))


def _forget(url: str) -> None:
    with _reached_lock:
        _reached.discard(url)
