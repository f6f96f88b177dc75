"""Refusals in the shape that OpenAI clients read: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_TYPES = {
    400: "invalid_request_error",
    401: "invalid_request_error",
    404: "invalid_request_error",
    405: "invalid_request_error",
    408: "invalid_request_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
    503: "service_unavailable_error",
}


class ApiError(Exception):
    """A refusal or failure that the client is told about.

    Args:
        status: HTTP status code.
        message: one sentence for the person who reads the error.
        code: machine-readable reason, such as "queue_full".
        param: the request field at fault, dotted, if it is one field.
        headers: further response headers.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """The JSON body of the response."""
        kind = _TYPES.get(self.status, "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def bad_request(message: str, *, code: str = "invalid_value", param: str | None = None) -> ApiError:
    """A 400."""
    return ApiError(400, message, code=code, param=param)


def too_large(message: str) -> ApiError:
    """A 413."""
    return ApiError(413, message, code="request_too_large")


def too_slow(message: str) -> ApiError:
    """A 408; the rest of the body is not waited for, so the connection ends with it."""
    return ApiError(408, message, code="request_timeout", headers={"Connection": "close"})


def overloaded(waiting: int) -> ApiError:
    """A 429 for a full queue of `waiting` requests."""
    message = f"{waiting} requests already wait for this replica: try again in a moment."
    return ApiError(429, message, code="queue_full", headers={"Retry-After": "1"})


def unavailable(message: str) -> ApiError:
    """A 503."""
    return ApiError(503, message, code="unavailable", headers={"Retry-After": "2"})
