"""What an address is."""

from __future__ import annotations

import pytest

from ktrdr_core.addresses import is_host_port, is_loopback


@pytest.mark.parametrize("address", ["gpu-1:50052", "10.0.0.7:1", "[::1]:65535"])
def test_host_and_port_are_an_address(address: str) -> None:
    assert is_host_port(address)


@pytest.mark.parametrize("address", ["", "gpu-1", ":50052", "gpu-1:", "gpu-1:0", "gpu-1:65536", "gpu-1:x", "gpu-1:٣"])
def test_what_nobody_can_be_reached_at_is_no_address(address: str) -> None:
    assert not is_host_port(address)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.8.0.1", "::1", "[::1]"])
def test_loopback_is_this_machine(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["", "gpu-1", "10.0.0.7", "0.0.0.0", "[::]"])  # noqa: S104  told apart
def test_any_other_host_may_be_elsewhere(host: str) -> None:
    assert not is_loopback(host)
