"""Ports and addresses: whether they are free, or of this machine only."""

from __future__ import annotations

import socket
from contextlib import ExitStack, suppress
from ipaddress import IPv6Address, ip_address

import psutil

from serving.settings import ServeError, Settings


def check_ports(settings: Settings) -> None:
    """Check that a server can listen on its ports.

    Raises:
        ServeError: If it cannot, naming the port and the process that uses it.
    """
    for name, host, port in settings.addresses:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
                probe.listen()
            except OSError as error:
                raise ServeError(
                    f"cannot listen on {host}:{port}: {error.strerror}{_listener(port)}; "
                    f"choose another port: make serve {name}=<port>"
                ) from error


def free_ports(count: int) -> list[int]:
    """Return free ports of the loopback."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def is_loopback(host: str) -> bool:
    """Return whether an address or a name stands for this machine only."""
    try:
        address = ip_address(host)
    except ValueError:
        return host == "localhost"
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return (mapped or address).is_loopback


def _listener(port: int) -> str:
    with suppress(psutil.Error):
        for connection in psutil.net_connections("tcp"):
            if connection.laddr and connection.laddr.port == port and connection.pid:
                return f" by {psutil.Process(connection.pid).name()} (pid {connection.pid})"
    return ""
