"""Finding a free port, and refusing one in use before anything slow has started."""

from __future__ import annotations

import errno
import random
import socket
from pathlib import Path

_LARGEST = 65535
_FIRST, _USUALLY, _DRAWS = 20_000, 32_768, 50
"""Ray's workers listen below the first."""
_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_DRAWN = random.SystemRandom()
"""A seeded program would draw the same ports as its neighbour."""


def free_port(host: str = "127.0.0.1") -> int:
    """A TCP port that was free on ``host`` just now.

    It lies below those that the system gives to whoever asks for any: between now and the moment in which a server
    takes it, many connections may be opened, and none of them gets this port.
    """
    for port in _below_the_systems():
        try:
            require_port(host, port)
        except ValueError:
            continue
        return port
    with _listener(host) as listener:
        listener.bind((host, 0))
        return int(listener.getsockname()[1])


def _below_the_systems() -> list[int]:
    """Some ports that the system gives to nobody by itself, as far as it has any."""
    try:
        end = int(_RANGE.read_text().split()[0])
    except OSError:  # not Linux
        end = _USUALLY
    open_to_us = range(_FIRST, end)
    return _DRAWN.sample(open_to_us, min(_DRAWS, len(open_to_us)))


def require_port(host: str, port: int) -> None:
    """Make sure that ``port`` can be listened on.

    Args:
        host: the address to listen on, by name or number.
        port: 1 to 65535.

    Raises:
        ValueError: if the port is in use, reserved or out of range, or ``host`` is not an address of this machine.
    """
    if not 1 <= port <= _LARGEST:
        raise ValueError(f"port={port} is out of range: choose one from 1 to {_LARGEST}.")
    try:
        with _listener(host) as listener:
            listener.bind((host, port))
            listener.listen(1)
    except OSError as error:
        raise ValueError(_sentence(host, port, error)) from error


def _listener(host: str) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    # As servers do: a port whose last connection is merely fading (TIME_WAIT) counts as free.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    return listener


def _sentence(host: str, port: int, error: OSError) -> str:
    if isinstance(error, PermissionError):
        return f"port={port} on {host} is reserved for the administrator: choose one above 1023."
    if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
        return f"host={host!r} is not an address of this machine: use 127.0.0.1 or one that `ip addr` shows."
    return f"port={port} on {host} is in use: stop what listens there or choose another port."
