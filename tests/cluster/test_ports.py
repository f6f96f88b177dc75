from __future__ import annotations

import socket

import pytest

from cluster import ports
from cluster.ports import free_port, require_port


def test_a_free_port_can_be_required_and_taken() -> None:
    port = free_port("127.0.0.1")
    require_port("127.0.0.1", port)
    with socket.create_server(("127.0.0.1", port)):
        pass
    require_port("127.0.0.1", port)


def test_a_free_port_is_none_that_the_system_gives_away_and_rarely_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    first = int(ports._RANGE.read_text().split()[0])
    drawn = [free_port() for _ in range(20)]
    assert all(20_000 <= port < first for port in drawn)
    assert len(set(drawn)) > 15
    monkeypatch.setattr(ports, "_FIRST", first)  # nothing is left below
    assert free_port() >= first


def test_a_port_in_use_is_refused_with_the_way_out() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(ValueError, match=rf"port={port} on 127.0.0.1 is in use: .*choose another port"):
            require_port("127.0.0.1", port)


@pytest.mark.parametrize("port", [0, -1, 65536])
def test_a_port_out_of_range_is_refused(port: int) -> None:
    with pytest.raises(ValueError, match=f"port={port} is out of range"):
        require_port("127.0.0.1", port)


def test_a_host_that_is_not_ours_is_refused() -> None:
    for host in ("192.0.2.77", "no-such-host.invalid"):
        with pytest.raises(ValueError, match=f"host='{host}' is not an address of this machine"):
            require_port(host, free_port())


def test_a_fading_connection_does_not_count_as_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        client = socket.create_connection(("127.0.0.1", port))
        accepted, _ = server.accept()
        accepted.close()  # the server's side closes first and stays in TIME_WAIT
        client.close()
    require_port("127.0.0.1", port)
