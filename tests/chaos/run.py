"""One schedule, carried out on a world: what goes wrong goes wrong, all is healed, and what is left is looked at."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import time
from collections import Counter
from collections.abc import Awaitable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from ktrdr.trainer.v1.session_pb2 import Session
from ktrdr_client.model_types import Model

from ktrdr_core.errors import AlreadyExistsError, IllegalStateError, KtrdrError
from ktrdr_core.storage.artifact_files import artifact_digest
from ktrdr_core.wire.from_proto import state_from_proto
from tests.chaos.backend_calls import BackendCalls, sessions_on
from tests.chaos.invariants import check_digests, check_training
from tests.chaos.observed import Attempt, Observed, StoredModel, Watched
from tests.chaos.schedule import TRAINERS, Action, CancelPlan, Kind, Schedule, TrainingPlan, WatcherPlan
from tests.chaos.service import Service
from tests.chaos.world import STOP_LIMIT_S, World
from tests.kit.eventually import eventually

_END_LIMIT_S = 90.0  # some ten times what it takes on a quiet machine
_WATCHERS_LIMIT_S = 20.0
_SETTLE_LIMIT_S = 20.0
_WORKER_WAIT_S = 1.0


@dataclass(kw_only=True)
class Outcome:
    """How a schedule ended.

    Attributes:
        problems: What is wrong; empty if every invariant holds.
        states: How many trainings reached which state.
        num_attempts: Sessions that began.
        actions: What was done, how often.
    """

    seed: int
    problems: list[str] = field(default_factory=list)
    states: Counter[str] = field(default_factory=Counter)
    num_attempts: int = 0
    num_watchers: int = 0
    num_reconnections: int = 0
    num_resumed: int = 0
    actions: Counter[str] = field(default_factory=Counter)
    duration_s: float = 0.0

    def __str__(self) -> str:
        states = " ".join(f"{state}={count}" for state, count in sorted(self.states.items()))
        actions = ", ".join(f"{name} x{count}" if count > 1 else name for name, count in sorted(self.actions.items()))
        verdict = "ok    " if not self.problems else "FAILED"
        return (
            f"seed={self.seed} {verdict} {self.duration_s:4.1f} s  {states}  attempts={self.num_attempts} "
            f"resumed={self.num_resumed} reconnections={self.num_reconnections}  [{actions}]"
        )


class ScheduleRun:
    """Carries out one schedule; use it once.

    Args:
        schedule: What is done.
        world: Where; healed afterwards, whatever happens.
        calls: The way to its backend.
        outcome: Filled in.
    """

    def __init__(self, schedule: Schedule, world: World, calls: BackendCalls, outcome: Outcome) -> None:
        self.schedule = schedule
        self.outcome = outcome
        self.observed = {plan.name: Observed(plan=plan) for plan in schedule.trainings}
        self._world = world
        self._calls = calls
        self._began = 0.0
        self._watchers: list[asyncio.Task[None]] = []
        self._stuck: list[Any] = []

    async def run(self) -> None:
        """Carry it out, heal the world, and look at what is left."""
        self._began = time.monotonic()
        trainings = [asyncio.create_task(self._train(plan)) for plan in self.schedule.trainings]
        try:
            await self._all(self._act(action) for action in self.schedule.actions)
            self.outcome.problems += await self._world.heal()
            await self._within(_END_LIMIT_S, "the calls", self._all(trainings))
            await self._within(_END_LIMIT_S, "the trainings", self._until_ended())
            await self._within(_WATCHERS_LIMIT_S, "the watchers", self._all(self._watchers))
            await self._send_late_messages()
            await self._settle()
            await self._look()
        finally:
            for task in (*trainings, *self._watchers):
                task.cancel()
            for stream in self._stuck:
                stream.cancel()
            await asyncio.gather(*trainings, *self._watchers, return_exceptions=True)
        for observed in self.observed.values():
            self.outcome.problems += check_training(observed, self.schedule)
            self.outcome.states[str(observed.state)] += 1
            self.outcome.num_attempts += sum(1 for attempt in observed.attempts if attempt.trainer)
            self.outcome.num_resumed += sum(1 for attempt in observed.attempts if attempt.resumed_from_epoch)
        self.outcome.problems += check_digests(self.observed.values(), self._world.digests)
        self.outcome.problems += self._world.defects()
        self.outcome.duration_s = time.monotonic() - self._began

    # What clients do

    def _request_id(self, plan: TrainingPlan) -> str:
        return f"chaos-{self.schedule.seed}-{plan.name}"

    async def _train(self, plan: TrainingPlan) -> None:
        observed = self.observed[plan.name]
        if plan.cancel is not None and plan.is_cancelled_before:
            await self._cancel(observed, plan.cancel)
        await self._until(plan.at_s)
        request_id = self._request_id(plan)
        observed.training_ids |= set(
            await asyncio.gather(*(self._calls.train(plan, request_id) for _ in range(plan.num_requests)))
        )
        for number, watcher in enumerate(plan.watchers, start=1):
            watched = Watched(name=f"watcher {number}")
            observed.watched.append(watched)
            self._watchers.append(asyncio.create_task(self._watch(watcher, watched, observed.training_id)))
        for _ in range(plan.num_stuck):
            self._stuck.append(self._calls.open_stream(observed.training_id))
        self.outcome.num_watchers += len(plan.watchers) + plan.num_stuck
        if plan.cancel is not None and not plan.is_cancelled_before:
            await asyncio.sleep(plan.cancel.after_s)
            await self._cancel(observed, plan.cancel)

    async def _cancel(self, observed: Observed, plan: CancelPlan) -> None:
        names = (
            {"request_id": self._request_id(observed.plan)}
            if plan.by_request_id
            else {"training_id": observed.training_id}
        )
        observed.cancels += await asyncio.gather(
            *(self._calls.cancel(**names, save_checkpoint=plan.save_checkpoint) for _ in range(plan.num_times))
        )

    async def _watch(self, plan: WatcherPlan, watched: Watched, training_id: str) -> None:
        def on_reconnect(_: KtrdrError) -> None:
            self.outcome.num_reconnections += 1

        await asyncio.sleep(plan.begin_s)
        try:
            async for event in self._calls.client.stream_progress(training_id, on_reconnect=on_reconnect):
                watched.events.append(event)
                if len(watched.events) == plan.stuck_after:
                    await asyncio.sleep(plan.stuck_s)
        except KtrdrError as error:
            watched.error = f"{error.reason}: {error.message}"

    async def _send_late_messages(self) -> None:
        """Send everything once more when it is long over: nothing may change."""
        for observed in self.observed.values():
            if not observed.training_id:
                continue
            observed.training_ids.add(await self._calls.train(observed.plan, self._request_id(observed.plan)))
            answer = await self._calls.cancel(training_id=observed.training_id)
            if answer.error_reason != IllegalStateError.reason:
                observed.duplicate_problems.append(f"a cancel after its end was answered {answer}")

    # What goes wrong

    async def _act(self, action: Action) -> None:
        await self._until(action.at_s)
        match action.kind:
            case Kind.KILL | Kind.STOP | Kind.HURRY | Kind.FREEZE | Kind.FILL_DISK:
                await self._break_service(action)
            case Kind.KILL_WORKER | Kind.FREEZE_WORKER:
                await self._break_worker(action)
            case Kind.CUT | Kind.PAUSE | Kind.SLOW:
                await self._break_network(action)
            case Kind.DRAIN:
                address = self._world.networks[action.target].address
                with suppress(KtrdrError):  # a trainer that the backend does not know yet, or not any more
                    await self._calls.drain(address, is_draining=True)
                    self._did(action)
                await asyncio.sleep(action.for_s)
                with suppress(KtrdrError):
                    await self._calls.drain(address, is_draining=False)
            case Kind.TRAIN_AGAIN | Kind.TRAIN_OTHERWISE | Kind.CANCEL_LATE:
                await self._send_message(action, self.observed[action.target])

    async def _break_service(self, action: Action) -> None:
        service = self._world.services[action.target]
        async with service.lock:
            self._did(action)
            match action.kind:
                case Kind.FREEZE:
                    service.freeze()
                    await asyncio.sleep(action.for_s)
                    service.thaw()
                    return
                case Kind.FILL_DISK:
                    service.limit_files(action.number)
                    await asyncio.sleep(action.for_s)
                    service.limit_files(None)
                    return
                case Kind.KILL:
                    await service.kill()
                case _:
                    await self._stop_service(service, is_hurried=action.kind is Kind.HURRY)
            await asyncio.sleep(action.for_s)
            await service.start()

    async def _stop_service(self, service: Service, *, is_hurried: bool) -> None:
        try:
            code = await service.stop(num_signals=2 if is_hurried else 1, limit_s=STOP_LIMIT_S)
        except AssertionError as error:
            self.outcome.problems.append(str(error))
            return
        # The second signal may meet a process whose last lines run, where it is on its own.
        if code and not (is_hurried and code == -signal.SIGTERM):
            self.outcome.problems.append(f"{service.name} ended with exit code {code} after SIGTERM")

    async def _break_worker(self, action: Action) -> None:
        service = self._world.services[action.target]
        try:
            workers = await eventually(service.workers, timeout_s=_WORKER_WAIT_S, every_s=0.02)
        except AssertionError:
            return  # nothing runs there
        pid = workers[action.number % len(workers)]
        with suppress(ProcessLookupError):
            if action.kind is Kind.KILL_WORKER:
                service.note(f"SIGKILL worker {pid}")
                os.kill(pid, signal.SIGKILL)
                self._did(action)
            else:
                service.note(f"SIGSTOP worker {pid}")
                os.kill(pid, signal.SIGSTOP)
                self._did(action)
                await asyncio.sleep(action.for_s)
                os.kill(pid, signal.SIGCONT)

    async def _break_network(self, action: Action) -> None:
        network = self._world.networks[action.target]
        async with self._world.network_locks[action.target]:
            self._did(action)
            match action.kind:
                case Kind.CUT:
                    await network.cut()
                case Kind.PAUSE:
                    await network.pause()
                case _:
                    await network.slow(bytes_per_s=action.number, latency_s=action.latency_s)
            await asyncio.sleep(action.for_s)
            await network.restore()

    async def _send_message(self, action: Action, observed: Observed) -> None:
        plan = observed.plan
        request_id = self._request_id(plan)
        if action.kind is Kind.TRAIN_AGAIN and not plan.is_cancelled_before:
            observed.training_ids.add(await self._calls.train(plan, request_id))
            self._did(action)
        elif action.kind is Kind.TRAIN_OTHERWISE and observed.training_id:
            try:
                answered = await self._calls.train(plan, request_id, is_other=True)
                observed.duplicate_problems.append(f"its request_id with other content was answered with {answered}")
            except AlreadyExistsError:
                self._did(action)
        elif action.kind is Kind.CANCEL_LATE and observed.training_id:
            observed.cancels.append(
                await self._calls.cancel(training_id=observed.training_id, save_checkpoint=bool(action.number))
            )
            self._did(action)

    # What is left

    async def _until_ended(self) -> None:
        for observed in self.observed.values():
            while observed.training_id:
                training = await self._calls.get(observed.training_id)
                observed.state = state_from_proto(training.state)
                if observed.state.is_terminal:
                    break
                await asyncio.sleep(0.1)

    async def _settle(self) -> None:
        """Wait until nothing runs, no slot is taken and nothing half made is left; else say what is left."""
        for name in TRAINERS:
            await self._until_true(lambda name=name: self._undrain(name))
        await self._until_true(self._sessions_left)
        await self._until_true(lambda: self._calls.trainer_problems(len(TRAINERS)))
        await self._until_true(self._processes_left)
        await self._until_true(self._files_left)

    async def _undrain(self, name: str) -> list[str]:
        try:
            await self._calls.drain(self._world.networks[name].address, is_draining=False)
        except KtrdrError as error:
            return [f"trainer {name} cannot be undrained: {error.message}"]
        return []

    async def _sessions_left(self) -> list[str]:
        return [
            f"session {session.session_id} of {session.training_id} still runs on {name}"
            for name, sessions in (await self._sessions()).items()
            for session in sessions
            if not state_from_proto(session.state).is_terminal
        ]

    async def _processes_left(self) -> list[str]:
        return [f"a worker still runs: process {process}" for process in self._world.strangers()]

    async def _files_left(self) -> list[str]:
        return [f"half made: {path}" for path in self._world.temporary_files()]

    async def _until_true(self, problems_now: Any) -> None:
        """Wait until there are no problems any more; else they are the schedule's."""
        left: list[str] = []

        async def is_clean() -> bool:
            left[:] = await problems_now()
            return not left

        try:
            await eventually(is_clean, timeout_s=_SETTLE_LIMIT_S, every_s=0.1)
        except AssertionError:
            self.outcome.problems += left

    async def _sessions(self) -> dict[str, list[Session]]:
        return {name: await sessions_on(self._world.services[name].address) for name in TRAINERS}

    async def _look(self) -> None:
        """Fill in what the invariants are about."""
        digests = {
            session.session_id: session.result.artifact_digest
            for sessions in (await self._sessions()).values()
            for session in sessions
        }
        models = await self._calls.models()
        requests = {self._request_id(observed.plan): observed for observed in self.observed.values()}
        for request_id, training_ids in (await self._calls.trainings_of(set(requests))).items():
            requests[request_id].training_ids |= set(training_ids)
        for observed in self.observed.values():
            if not observed.training_id:
                continue
            training = await self._calls.get(observed.training_id)
            observed.state = state_from_proto(training.state)
            observed.history = await self._calls.history(observed.training_id)
            observed.result_digest = training.result.artifact_digest
            observed.attempts = [
                Attempt(
                    session_id=session.session_id,
                    number=session.attempt,
                    trainer=session.trainer,
                    outcome=session.outcome,
                    resumed_from_epoch=session.resumed_from_epoch,
                    is_fenced=session.is_fenced,
                    digest=digests.get(session.session_id, ""),
                )
                for session in training.sessions
            ]
            observed.models = [
                await asyncio.to_thread(_read_model, model)
                for model in models
                if model.training_id == observed.training_id
            ]

    # Time

    async def _until(self, at_s: float) -> None:
        await asyncio.sleep(max(self._began + at_s - time.monotonic(), 0.0))

    async def _within(self, limit_s: float, what: str, coroutine: Awaitable[None]) -> None:
        try:
            async with asyncio.timeout(limit_s):
                await coroutine
        except TimeoutError:
            self.outcome.problems.append(f"{what} had not ended {limit_s:g} s after all was well again")

    async def _all(self, awaitables: Any) -> None:
        """Wait for all of them; a call that failed in the end is a problem of the schedule."""
        tasks = [asyncio.ensure_future(each) for each in awaitables]
        try:
            for answer in await asyncio.gather(*tasks, return_exceptions=True):
                if isinstance(answer, KtrdrError | grpc.RpcError | AssertionError):
                    self.outcome.problems.append(f"{type(answer).__name__}: {answer}")
                elif isinstance(answer, BaseException):
                    raise answer
        finally:
            for task in tasks:
                task.cancel()

    def _did(self, action: Action) -> None:
        self.outcome.actions[f"{action.kind} {action.target}" if action.target in self._targets else action.kind] += 1

    @property
    def _targets(self) -> set[str]:
        return {*self._world.services, *self._world.networks}


def _read_model(model: Model) -> StoredModel:
    path = Path(model.path)
    damaged = [
        file.name for file in model.files if hashlib.sha256((path / file.name).read_bytes()).hexdigest() != file.sha256
    ]
    return StoredModel(
        name=model.name,
        attempt=model.attempt,
        digest=model.artifact_digest,
        digest_of_files=artifact_digest(path),
        damaged_files=tuple(damaged),
    )
