"""TrainingService: from proto, one call, to proto."""
# ruff: noqa: N802  the methods have the names of the RPCs

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import grpc.aio
from ktrdr.training.v1 import training_pb2, training_service_pb2_grpc
from ktrdr.training.v1 import training_service_pb2 as pb

from backend_service.admission import Admission
from backend_service.configuration import Configuration
from backend_service.operations.training_record import TrainingSnapshot
from backend_service.operations.trainings import Trainings
from backend_service.orchestration.dispatcher import Dispatcher
from backend_service.orchestration.trainers import Trainers
from backend_service.progress_relay import ProgressRelay
from backend_service.servicers.messages import strategy_to_proto, trainer_to_proto, training_to_proto
from backend_service.servicers.progress_messages import ProgressMessages
from backend_service.strategies import Strategies
from ktrdr_core.domain.spec import TrainingSpec
from ktrdr_core.domain.states import TrainingState
from ktrdr_core.rpc.caller import user_of_caller
from ktrdr_core.wire.from_proto import mode_from_proto, scheduling_from_proto, spec_from_proto, state_from_proto
from ktrdr_core.wire.to_proto import events_to_proto, mode_to_proto, spec_to_proto

Context = grpc.aio.ServicerContext[Any, Any]


class TrainingServicer(training_service_pb2_grpc.TrainingServiceServicer):
    """The contract is in `training_service.proto`."""

    def __init__(
        self,
        *,
        admission: Admission,
        trainings: Trainings,
        dispatcher: Dispatcher,
        relay: ProgressRelay,
        configuration: Configuration,
        trainers: Trainers,
        strategies: Strategies,
    ) -> None:
        self._admission = admission
        self._trainings = trainings
        self._dispatcher = dispatcher
        self._relay = relay
        self._configuration = configuration
        self._trainers = trainers
        self._strategies = strategies
        self._progress = ProgressMessages(self._to_proto)

    async def Train(self, request: pb.TrainRequest, context: Context) -> pb.TrainResponse:
        spec = await self._read_spec(request)
        if request.validate_only:
            checked = await self._admission.check(spec)
            training = training_pb2.Training(
                strategy_name=checked.strategy_name, spec=spec_to_proto(checked.normalised)
            )
        else:
            asked = scheduling_from_proto(request.scheduling)
            scheduling = replace(asked, user=user_of_caller(asked.user))
            snapshot = await self._admission.accept(spec, request_id=request.request_id, scheduling=scheduling)
            training = self._to_proto(snapshot)
        return pb.TrainResponse(training=training)

    async def Cancel(self, request: pb.CancelRequest, context: Context) -> pb.CancelResponse:
        snapshot = await self._dispatcher.cancel_either(
            request.training_id,
            request.request_id,
            save_checkpoint=request.save_checkpoint,
            reason=request.cancel_reason,
        )
        if snapshot is None:
            return pb.CancelResponse()
        return pb.CancelResponse(training=training_to_proto(snapshot), checkpoint_path=snapshot.summary.checkpoint_path)

    async def StreamProgress(
        self, request: pb.StreamProgressRequest, context: Context
    ) -> AsyncIterator[pb.StreamProgressResponse]:
        async with aclosing(self._relay.watch(request.training_id, request.after_sequence)) as updates:
            async for update in updates:
                yield self._progress.build(update)

    async def GetTraining(self, request: pb.GetTrainingRequest, context: Context) -> pb.GetTrainingResponse:
        snapshot = await self._trainings.snapshot(request.training_id)
        return pb.GetTrainingResponse(training=self._to_proto(snapshot))

    async def ListTrainings(self, request: pb.ListTrainingsRequest, context: Context) -> pb.ListTrainingsResponse:
        states: list[TrainingState] = [state_from_proto(state) for state in request.states]
        page = await self._trainings.list_page(
            page_size=request.page_size,
            page_token=request.page_token,
            states=states,
            strategy_name=request.strategy_name,
        )
        return pb.ListTrainingsResponse(
            trainings=[self._to_proto(snapshot, with_evaluation=False) for snapshot in page.snapshots],
            next_page_token=page.next_page_token,
        )

    async def DeleteTraining(self, request: pb.DeleteTrainingRequest, context: Context) -> pb.DeleteTrainingResponse:
        await self._trainings.delete(request.training_id)
        return pb.DeleteTrainingResponse()

    async def GetConfig(self, request: pb.GetConfigRequest, context: Context) -> pb.GetConfigResponse:
        facts = self._configuration
        return pb.GetConfigResponse(
            default_mode=mode_to_proto(facts.default_mode),
            version=facts.version,
            models_path=str(facts.models_dir),
            bars_path=str(facts.bars_dir),
            strategies_path=str(facts.strategies_dir),
            trainers=facts.trainers,
            local_slots=facts.local_slots,
        )

    async def UpdateConfig(self, request: pb.UpdateConfigRequest, context: Context) -> pb.UpdateConfigResponse:
        previous, current = await self._configuration.change_default_mode(mode_from_proto(request.default_mode))
        return pb.UpdateConfigResponse(
            previous_default_mode=mode_to_proto(previous), default_mode=mode_to_proto(current)
        )

    async def ListTrainingEvents(
        self, request: pb.ListTrainingEventsRequest, context: Context
    ) -> pb.ListTrainingEventsResponse:
        page = await self._trainings.list_events(
            request.training_id, page_size=request.page_size, page_token=request.page_token
        )
        return pb.ListTrainingEventsResponse(events=events_to_proto(page.events), next_page_token=page.next_page_token)

    async def SetTrainerDraining(
        self, request: pb.SetTrainerDrainingRequest, context: Context
    ) -> pb.SetTrainerDrainingResponse:
        health = await self._trainers.set_draining(request.trainer, request.is_draining)
        return pb.SetTrainerDrainingResponse(trainer=trainer_to_proto(health))

    async def ListTrainers(self, request: pb.ListTrainersRequest, context: Context) -> pb.ListTrainersResponse:
        found = await self._trainers.check_all()
        return pb.ListTrainersResponse(trainers=[trainer_to_proto(health) for health in found])

    async def ListStrategies(self, request: pb.ListStrategiesRequest, context: Context) -> pb.ListStrategiesResponse:
        entries = await self._strategies.list_entries()
        return pb.ListStrategiesResponse(strategies=[strategy_to_proto(entry) for entry in entries])

    def _to_proto(self, snapshot: TrainingSnapshot, *, with_evaluation: bool = True) -> training_pb2.Training:
        queue = self._dispatcher.queue_status(snapshot.row.training_id)
        return training_to_proto(snapshot, queue=queue, with_evaluation=with_evaluation)

    async def _read_spec(self, request: pb.TrainRequest) -> TrainingSpec:
        source = request.spec.strategy
        is_named = source.WhichOneof("source") == "name"
        text = await self._strategies.read(source.name) if is_named else None
        return spec_from_proto(request.spec, strategy_yaml=text)
