"""Every RPC of both services has a row in the table of scopes, and there is no row without an RPC."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import ktrdr
from google.protobuf.descriptor import ServiceDescriptor
from grpc_reflection.v1alpha import reflection

from ktrdr_core.rpc.scopes import OPEN_RPCS, SCOPES_BY_RPC
from tests.architecture.test_rpcs import SERVED


def _rpcs(service: ServiceDescriptor) -> set[str]:
    return {f"/{service.full_name}/{method.name}" for method in service.methods}


def test_every_rpc_of_both_services_has_its_scopes() -> None:
    served = set().union(*(_rpcs(service) for service, _ in SERVED))
    told = {rpc for rpc in SCOPES_BY_RPC if not rpc.startswith(f"/{reflection.SERVICE_NAME}/")}
    assert told == served
    assert all(SCOPES_BY_RPC.values())
    assert not OPEN_RPCS & set(SCOPES_BY_RPC)


def test_every_service_of_the_protos_is_served() -> None:
    """Else the test above would miss its RPCs."""
    found = set()
    root = Path(next(iter(ktrdr.__path__)))
    for path in root.rglob("*_service_pb2.py"):
        module = import_module(".".join(("ktrdr", *path.relative_to(root).with_suffix("").parts)))
        found |= {service.full_name for service in module.DESCRIPTOR.services_by_name.values()}
    assert found == {service.full_name for service, _ in SERVED}
