"""Addresses of services: host:port."""

from __future__ import annotations

import ipaddress


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
