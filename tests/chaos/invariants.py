"""What must hold after every schedule. Pure: `Observed` in, sentences on what is wrong out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

from backend_service.orchestration.completion import HISTORY_INCOMPLETE
from ktrdr_core.domain.progress import CHECKPOINT_UNUSABLE, EpochDetail, ProgressEvent, StateDetail, WarningDetail
from ktrdr_core.domain.states import TRANSITIONS, TrainingState
from ktrdr_core.errors import (
    DegenerateLabelsError,
    DrainingError,
    IllegalStateError,
    StorageError,
    TrainerLostError,
    WorkerDiedError,
)
from tests.chaos.observed import Observed, Watched
from tests.chaos.schedule import Kind, Recipe, Schedule

MAX_ATTEMPTS = 6
_LOST = "LOST"
_ENDINGS = (Kind.KILL, Kind.STOP, Kind.HURRY)


def check_training(observed: Observed, schedule: Schedule) -> list[str]:
    """Return what is wrong with one training of a schedule."""
    problems = [*_identity(observed)]
    if observed.training_id:
        problems += _history(observed.history)
        problems += _state(observed)
        problems += _epochs(observed)
        problems += _models(observed)
        problems += _attempts(observed)
        problems += _cancels(observed)
        problems += _failure(observed, schedule)
        for watched in observed.watched:
            problems += _watcher(watched, observed.history)
    return [f"{observed.plan.name} ({observed.training_id}): {problem}" for problem in problems]


def check_digests(observed: Iterable[Observed], known: dict[str, str]) -> list[str]:
    """Return which completed trainings of one recipe have other bits than those in `known`, which learns new ones."""
    problems = []
    for each in observed:
        if each.state is TrainingState.COMPLETED and each.result_digest:
            first = known.setdefault(each.plan.recipe, each.result_digest)
            if first != each.result_digest:
                problems.append(
                    f"{each.plan.name} ({each.training_id}): digest {each.result_digest} of a {each.plan.recipe} "
                    f"training after attempts {[attempt.trainer for attempt in each.attempts]} differs from {first}"
                )
    return problems


def _identity(observed: Observed) -> Iterator[str]:
    if len(observed.training_ids) != 1:
        yield f"equal Trains were answered with {len(observed.training_ids)} trainings: {sorted(observed.training_ids)}"
    yield from observed.duplicate_problems


def _history(history: Sequence[ProgressEvent]) -> Iterator[str]:
    sequences = [event.sequence for event in history]
    if sequences != list(range(1, len(history) + 1)):
        yield f"the history's sequences are not 1 to {len(history)}: {_breaks(sequences)}"
    terminal = [event for event in history if event.terminal_state is not None]
    if len(terminal) != 1 or history[-1].terminal_state is None:
        states_told = [str(event.terminal_state) for event in terminal]
        yield f"the history's terminal events are {states_told}, it ends with {history[-1].detail if history else None}"
    states = [event.detail.state for event in history if isinstance(event.detail, StateDetail)]
    if states[:1] != [TrainingState.QUEUED]:
        yield f"the history begins with {states[:1]}, not with QUEUED"
    for current, new in pairwise(states):
        if new not in TRANSITIONS[current]:
            yield f"the history goes from {current} to {new}"
    if any(not event.is_durable for event in history):
        yield "the history has batch events"


def _state(observed: Observed) -> Iterator[str]:
    told = observed.history[-1].terminal_state if observed.history else None
    if observed.state is not told:
        yield f"it is {observed.state}, its history ends with {told}"


def _epochs(observed: Observed) -> Iterator[str]:
    """Epochs follow each other without gap or repeat, over attempts too, but for one that began at the beginning."""
    resumed = {attempt.number: attempt.resumed_from_epoch for attempt in observed.attempts if attempt.trainer}
    told: dict[int, list[int]] = {}
    latest = total = 0
    for event in observed.history:
        detail = event.detail
        if isinstance(detail, WarningDetail) and detail.reason == CHECKPOINT_UNUSABLE:
            resumed[event.attempt] = 0
        if isinstance(detail, EpochDetail):
            if event.attempt not in told and not resumed.get(event.attempt):
                latest = 0
            if detail.epoch != latest + 1:
                yield (
                    f"attempt {event.attempt}, which went on from epoch {resumed.get(event.attempt, 0)}, told epoch "
                    f"{detail.epoch} after epoch {latest}"
                )
            told.setdefault(event.attempt, []).append(detail.epoch)
            latest, total = detail.epoch, detail.total_epochs
    # Who cancels a training whose model is stored, and whose trainer is away, is not kept waiting for the rest of its
    # history: it is COMPLETED, and says that there is a hole.
    warned = {event.detail.reason for event in observed.history if isinstance(event.detail, WarningDetail)}
    may_have_hole = bool(observed.cancels) and HISTORY_INCOMPLETE in warned
    if observed.state is TrainingState.COMPLETED and (latest != total or not told) and not may_have_hole:
        runs = {attempt: _breaks(epochs) for attempt, epochs in told.items()}
        yield f"it completed and told {latest} epochs of {total or 'all'}, by attempt: {runs}"


def _models(observed: Observed) -> Iterator[str]:
    names = [model.name for model in observed.models]
    if observed.state is not TrainingState.COMPLETED:
        if names:
            yield f"it is {observed.state} and has the models {names}"
        return
    if len(names) != 1:
        yield f"it is COMPLETED and has {len(names)} models: {names}"
        return
    model = observed.models[0]
    digests = {"its result": observed.result_digest, "the store": model.digest, "the files": model.digest_of_files}
    attempt = next((each for each in observed.attempts if each.number == model.attempt and each.trainer), None)
    if attempt is None or attempt is not observed.attempts[-1]:
        yield f"the model is of attempt {model.attempt}, its attempts are {[each.number for each in observed.attempts]}"
    elif attempt.trainer != "local":
        digests[f"trainer {attempt.trainer}"] = attempt.digest
    if len(set(digests.values())) != 1 or not model.digest:
        yield f"the digests differ: {digests}"
    if model.damaged_files:
        yield f"files of {model.name} differ from their SHA-256: {', '.join(model.damaged_files)}"


def _attempts(observed: Observed) -> Iterator[str]:
    begun = [attempt for attempt in observed.attempts if attempt.trainer]
    numbers = [attempt.number for attempt in begun]
    if numbers != list(range(1, len(numbers) + 1)):
        yield f"its attempts are {numbers}"
    if any(not attempt.outcome for attempt in begun):
        yield f"attempts without an outcome: {[attempt.number for attempt in begun if not attempt.outcome]}"
    if any(attempt.outcome != _LOST for attempt in begun[:-1]):
        yield f"an attempt that was not lost was followed by another: {[attempt.outcome for attempt in begun]}"
    if any(attempt.resumed_from_epoch for attempt in begun[:1]):
        yield "its first attempt went on from a checkpoint"
    if observed.state is TrainingState.COMPLETED and (not begun or begun[-1].outcome != TrainingState.COMPLETED):
        yield f"it is COMPLETED, its attempts ended {[attempt.outcome for attempt in begun]}"
    if len(begun) > 1 and not observed.plan.may_retry:
        yield f"it must not be retried and has {len(begun)} attempts"
    if len(begun) > MAX_ATTEMPTS:
        yield f"it has {len(begun)} attempts, at most {MAX_ATTEMPTS} are allowed"


def _cancels(observed: Observed) -> Iterator[str]:
    """What a cancel was answered is what happened, and nothing is cancelled that nobody asked for."""
    asked = {cancel.save_checkpoint for cancel in observed.cancels}
    if observed.state is TrainingState.CANCELLED and not asked:
        yield "it is CANCELLED and nobody asked for that"
    if observed.state is TrainingState.STOPPED and True not in asked:
        yield "it is STOPPED and nobody asked for a checkpoint"
    for cancel in observed.cancels:
        if cancel.state is not None and cancel.state is not observed.state:
            yield f"a cancel was answered {cancel.state}, it is {observed.state}"
        if cancel.error_reason not in ("", IllegalStateError.reason):
            yield f"a cancel was answered with {cancel.error_reason}"
    if observed.plan.is_cancelled_before:
        ended = TrainingState.CANCELLED
        if observed.state is not ended or any(attempt.trainer for attempt in observed.attempts):
            yield f"it was cancelled before it arrived, is {observed.state} and has {len(observed.attempts)} attempts"


def _failure(observed: Observed, schedule: Schedule) -> Iterator[str]:
    """A training fails only by what can make it fail."""
    if observed.state is TrainingState.COMPLETED and observed.plan.recipe is Recipe.DEGENERATE:
        yield "it completed with degenerate labels"
    if observed.state is not TrainingState.FAILED or not observed.history:
        return
    detail = observed.history[-1].detail
    assert isinstance(detail, StateDetail)
    allowed = set()
    if observed.plan.recipe is Recipe.DEGENERATE:
        allowed.add(DegenerateLabelsError.reason)
    begun = sum(1 for attempt in observed.attempts if attempt.trainer)
    if not observed.plan.may_retry or begun >= MAX_ATTEMPTS:
        allowed.add(TrainerLostError.reason)
        if schedule.has(Kind.STOP, Kind.HURRY):
            allowed.add(DrainingError.reason)
        if any(action.target == "backend" for action in schedule.actions if action.kind in _ENDINGS):
            allowed.add(WorkerDiedError.reason)  # of a local one, with the backend
    if schedule.has(Kind.KILL_WORKER):
        allowed.add(WorkerDiedError.reason)
    if schedule.has(Kind.FILL_DISK):
        allowed.add(StorageError.reason)
    if detail.error_reason not in allowed:
        yield f"it FAILED with {detail.error_reason} ({detail.message}); allowed here: {sorted(allowed) or 'nothing'}"


def _watcher(watched: Watched, history: Sequence[ProgressEvent]) -> Iterator[str]:
    durable = [event for event in watched.events if event.is_durable]
    if watched.error:
        yield f"{watched.name} ended with {watched.error}"
    if [event.sequence for event in durable] != [event.sequence for event in history]:
        seen = _breaks([event.sequence for event in durable])
        yield f"{watched.name} saw {seen}, the history has {len(history)} events"
    elif durable != list(history):
        other = next(index for index, event in enumerate(durable) if event != history[index])
        yield f"{watched.name} saw {durable[other]}, the history has {history[other]}"
    position = 0
    for event in watched.events:
        if event.is_durable:
            position = event.sequence
        elif event.sequence != position:
            yield f"{watched.name} saw a batch event of sequence {event.sequence} after event {position}"
            break
    if watched.events and watched.events[-1].terminal_state is None and not watched.error:
        yield f"{watched.name} ended after {watched.events[-1].detail}"


def _breaks(numbers: Sequence[int]) -> str:
    """Return numbers as runs: "1-5, 4-9"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1] = [runs[-1][0], number]
        else:
            runs.append([number, number])
    return ", ".join(f"{first}-{last}" if first != last else str(first) for first, last in runs) or "none"
