"""Addresses of services: host:port."""

from __future__ import annotations

import ipaddress

_ANY_ADDRESS = ("0.0.0.0", "::", "[::]", "")  # noqa: S104  named to be told apart, not listened on


def is_host_port(address: str) -> bool:
    """Return whether an address has a host, and a port from 1 to 65535."""
    host, _, port = address.rpartition(":")
    is_number = port.isascii() and port.isdecimal() and len(port) <= 5
    return bool(host) and is_number and 0 < int(port) < 65_536


def is_loopback(host: str) -> bool:
    """Return whether a host, given without its port, is the machine itself, as far as its name tells."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def is_address_for(host: str, other: str) -> bool:
    """Return whether a service that listens at `host` can be told to `other` as the address it is reached at.

    Args:
        host: What the service listens at.
        other: Address, host:port, of who is told.
    """
    return host not in _ANY_ADDRESS and (not is_loopback(host) or is_loopback(other.rpartition(":")[0]))
