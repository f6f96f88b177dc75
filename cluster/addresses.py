"""Addresses of Ray clusters: their form, and whether somebody answers there who accepts us."""

from __future__ import annotations

import grpc  # type: ignore[import-untyped]
from ray._private import services
from ray._private.grpc_utils import init_grpc_channel
from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc

_PROBE_S = 5.0


def check_address(address: str, field: str) -> None:
    """Refuse what is no cluster's address.

    Raises:
        ValueError: naming ``field``, the address and the way out.
    """
    if address in {"auto", "local"}:
        return
    if "://" in address:
        raise ValueError(
            f"{field}={address!r} is a URL: give the cluster's own host:port (usually port 6379), "
            "or send the work there with `ray job submit --address URL`."
        )
    port = address.rpartition(":")[2]
    if not address.rpartition(":")[0] or not port.isdigit():
        raise ValueError(f"{field}={address!r} is not a cluster: give host:port, or `local` for an embedded one.")


def resolved(address: str) -> str:
    """``address`` with ``auto`` replaced by the cluster that runs on this machine.

    Raises:
        ValueError: if none runs.
    """
    if address != "auto":
        return address
    try:
        return str(services.canonicalize_bootstrap_address("auto"))
    except ConnectionError as error:
        raise ValueError(
            "address='auto' finds no Ray cluster on this machine: start one with `ray start --head`, "
            "or leave out address and RAY_ADDRESS for an embedded one."
        ) from error


def probe(address: str) -> None:
    """Ask the cluster for its name: connecting at once, Ray would try for twenty seconds and fill the terminal with it.

    Raises:
        ValueError: if nobody answers, or the cluster refuses our token.
    """
    channel = init_grpc_channel(address)
    try:
        stub = gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel)
        stub.GetClusterId(gcs_service_pb2.GetClusterIdRequest(), timeout=_PROBE_S)
    except grpc.RpcError as error:
        if error.code() == grpc.StatusCode.UNAUTHENTICATED:
            raise ValueError(
                f"The Ray cluster at {address} refuses our token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN "
                "(or ~/.ray/auth_token) to the cluster's own."
            ) from error
        raise ValueError(
            f"No Ray cluster answers at {address} ({error.code().name.lower()}): start one with `ray start --head`, "
            "or leave out address and RAY_ADDRESS for an embedded one."
        ) from error
    finally:
        channel.close()
