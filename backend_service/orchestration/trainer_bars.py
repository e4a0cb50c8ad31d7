"""How the bars of an attempt reach its trainer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import grpc.aio
from ktrdr.data.v1.series_pb2 import Series
from ktrdr.trainer.v1 import trainer_service_pb2 as pb

from backend_service.operations.records import SessionRow
from backend_service.orchestration.trainer_channel import error_of_trainer
from backend_service.orchestration.trainers import Trainers
from ktrdr_core.errors import KtrdrError, UnreachableError

READ_WATCHDOG_S = 5.0
"""A trainer reports each half second while it fetches."""


class TrainerBars:
    """Has trainers fetch bars.

    Args:
        trainers: The way to them.
        address: Returns where they fetch them: that of this backend.
    """

    def __init__(self, trainers: Trainers, *, address: Callable[[], str]) -> None:
        self._trainers = trainers
        self._address = address

    async def prepare(
        self, session: SessionRow, series: Sequence[Series], on_bytes: Callable[[int], None]
    ) -> KtrdrError | None:
        """Have the session's trainer fetch bars it lacks; return why it does not have them, None if it does.

        Args:
            session: Whose trainer.
            series: What it is to have.
            on_bytes: Told how many bytes of them are there.
        """
        request = pb.PrepareBarsRequest(series=series, source=self._address())
        call: grpc.aio.UnaryStreamCall[pb.PrepareBarsRequest, pb.PrepareBarsResponse] | None = None
        try:
            call = self._trainers.stub_of(session).PrepareBars(request)
            while True:
                async with asyncio.timeout(READ_WATCHDOG_S):
                    response = await call.read()
                if not isinstance(response, pb.PrepareBarsResponse):  # grpc's end-of-stream marker
                    return None
                on_bytes(response.ready_size_bytes)
        except TimeoutError:
            return UnreachableError(f"it was silent for {READ_WATCHDOG_S:g} s while it fetched bars")
        except grpc.aio.AioRpcError as rpc_error:
            return error_of_trainer(rpc_error)
        except UnreachableError as error:
            return error
        finally:
            if call is not None:
                call.cancel()
