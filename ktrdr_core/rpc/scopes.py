"""Which scopes let a call in: each RPC of both services, and no other place that decides it.

READ looks. TRAIN adds, and changes what can be changed back. ADMIN removes for good and steers the services. TRAINER is
how backend and trainers call each other. A test proves that no RPC is missing.
"""

from __future__ import annotations

from collections.abc import Mapping

from ktrdr_core.security.scopes import Scope

_READ = frozenset({Scope.READ})
_TRAIN = frozenset({Scope.TRAIN})
_ADMIN = frozenset({Scope.ADMIN})
_TRAINER = frozenset({Scope.TRAINER})

_TRAININGS = "/ktrdr.training.v1.TrainingService/"
_MODELS = "/ktrdr.models.v1.ModelService/"
_DATA = "/ktrdr.data.v1.MarketDataService/"
_TRAINERS = "/ktrdr.trainer.v1.TrainerService/"

SCOPES_BY_RPC: Mapping[str, frozenset[Scope]] = {
    f"{_TRAININGS}Train": _TRAIN,
    f"{_TRAININGS}Cancel": _TRAIN,
    f"{_TRAININGS}StreamProgress": _READ,
    f"{_TRAININGS}GetTraining": _READ,
    f"{_TRAININGS}ListTrainings": _READ,
    f"{_TRAININGS}ListTrainingEvents": _READ,
    f"{_TRAININGS}DeleteTraining": _ADMIN,
    f"{_TRAININGS}GetConfig": _READ,
    f"{_TRAININGS}UpdateConfig": _ADMIN,
    f"{_TRAININGS}ListTrainers": _READ,
    f"{_TRAININGS}SetTrainerDraining": _ADMIN,
    f"{_TRAININGS}ListStrategies": _READ,
    # Of a training: TRAINER; an import: TRAIN. The header says which, so the servicer decides between the two.
    f"{_MODELS}UploadModel": _TRAINER | _TRAIN,
    f"{_MODELS}QueryUpload": _TRAINER | _TRAIN,
    f"{_MODELS}DownloadModel": _READ,
    f"{_MODELS}GetModel": _READ,
    f"{_MODELS}ListModels": _READ,
    f"{_MODELS}VerifyModel": _READ,
    f"{_MODELS}DeleteModel": _ADMIN,
    f"{_MODELS}SetModelAlias": _TRAIN,
    f"{_MODELS}CollectGarbage": _ADMIN,
    f"{_DATA}ListSeries": _READ | _TRAINER,
    f"{_DATA}GetSeries": _READ | _TRAINER,
    f"{_DATA}GetBars": _READ | _TRAINER,
    f"{_DATA}ImportBars": _TRAIN,
    "/ktrdr.trainer.v1.TrainerRegistryService/Register": _TRAINER,
    f"{_TRAINERS}Train": _TRAINER,
    f"{_TRAINERS}Cancel": _TRAINER,
    f"{_TRAINERS}StreamProgress": _TRAINER | _READ,
    f"{_TRAINERS}GetSession": _TRAINER | _READ,
    f"{_TRAINERS}ListSessions": _TRAINER | _READ,
    f"{_TRAINERS}GetCheckpoint": _TRAINER,
    f"{_TRAINERS}PutCheckpoint": _TRAINER,
    f"{_TRAINERS}PrepareBars": _TRAINER,
    f"{_TRAINERS}GetServerInfo": _TRAINER | _READ,
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": _READ,
}

OPEN_RPCS = frozenset({"/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"})
"""Answered to everybody: load balancers and supervisors have no token, and learn no more than that a service serves."""


def scopes_for(rpc: str) -> frozenset[Scope]:
    """Return the scopes any one of which lets a call in; what is in no table is for an admin."""
    return SCOPES_BY_RPC.get(rpc, _ADMIN)
