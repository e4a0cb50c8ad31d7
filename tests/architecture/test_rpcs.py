"""No RPC is forgotten: each RPC of the protos is served by a method of its own, also those that a later version fills.

That the client covers each of them is proven in tests/unit/client.
"""

from __future__ import annotations

import pytest
from google.protobuf.descriptor import ServiceDescriptor
from ktrdr.data.v1 import market_data_service_pb2
from ktrdr.models.v1 import model_service_pb2
from ktrdr.trainer.v1 import trainer_registry_service_pb2, trainer_service_pb2
from ktrdr.training.v1 import training_service_pb2

from backend_service.servicers.market_data import MarketDataServicer
from backend_service.servicers.models import ModelServicer
from backend_service.servicers.registry import TrainerRegistryServicer
from backend_service.servicers.training import TrainingServicer
from trainer_service.servicer import TrainerServicer

SERVED: list[tuple[ServiceDescriptor, type]] = [
    (training_service_pb2.DESCRIPTOR.services_by_name["TrainingService"], TrainingServicer),
    (model_service_pb2.DESCRIPTOR.services_by_name["ModelService"], ModelServicer),
    (market_data_service_pb2.DESCRIPTOR.services_by_name["MarketDataService"], MarketDataServicer),
    (trainer_registry_service_pb2.DESCRIPTOR.services_by_name["TrainerRegistryService"], TrainerRegistryServicer),
    (trainer_service_pb2.DESCRIPTOR.services_by_name["TrainerService"], TrainerServicer),
]


@pytest.mark.parametrize(("service", "servicer"), SERVED, ids=lambda value: getattr(value, "name", None))
def test_every_rpc_has_a_method_of_its_own(service: ServiceDescriptor, servicer: type) -> None:
    generated = servicer.__mro__[1]
    rpcs = {method.name for method in service.methods}
    assert {name for name in rpcs if getattr(servicer, name) is getattr(generated, name)} == set()
    public = {name for name in vars(servicer) if not name.startswith("_")}
    assert public == rpcs, "a servicer serves the RPCs of its service and nothing else"
