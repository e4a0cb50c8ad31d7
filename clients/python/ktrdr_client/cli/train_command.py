"""`ktrdr train`."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from ktrdr_client.cli import exit_codes, json_lines
from ktrdr_client.cli.exit_codes import ExitCode
from ktrdr_client.cli.session import CliSession
from ktrdr_client.types import Training
from ktrdr_core.config.loader import parse_strategy, read_strategy_text
from ktrdr_core.domain.scheduling import DEFAULT_SCHEDULING, RetryMode, Scheduling
from ktrdr_core.domain.spec import DataMode, ExecutionMode, TrainingSpec
from ktrdr_core.errors import InvalidInputError, InvalidSpecError, StrategyNotFoundError

_SUFFIXES = (".yaml", ".yml")
_BARS_FROM = {
    DataMode.BACKEND: "the backend",
    DataMode.LOCAL: "the machine that trains",
    DataMode.CSV: "CSV files of the machine that trains",
}


@dataclass(frozen=True, kw_only=True)
class TrainArguments:
    """What was typed; None means not given."""

    strategy: str
    symbols: str | None = None
    timeframes: str | None = None
    start: str | None = None
    end: str | None = None
    mode: str | None = None
    data_mode: str | None = None
    require_gpu: bool = False
    epochs: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    seed: int | None = None
    assignments: tuple[str, ...] = ()
    detach: bool = False
    validate_only: bool = False
    user: str | None = None
    priority: int = 0
    retries: int | None = None
    request_id: str | None = None


async def train(session: CliSession, arguments: TrainArguments) -> int:
    """Send the training; then watch it, or with --detach only say its id."""
    # Bad input is refused before a backend is started.
    text, name = read_strategy(arguments)
    spec = build_spec(arguments, text)
    scheduling = build_scheduling(arguments, session.settings.user)
    request_id = arguments.request_id or str(uuid.uuid4())

    from ktrdr_client.cli.follow import follow
    from ktrdr_client.cli.send_train import send_train

    async with session.client() as client:
        sending = client.train(
            spec,
            strategy_name=name,
            request_id=request_id,
            validate_only=arguments.validate_only,
            scheduling=scheduling,
        )
        is_own_id = arguments.request_id is None
        training = await send_train(session, client, sending, request_id=request_id, is_own_id=is_own_id)
        if isinstance(training, ExitCode):
            return training
        if arguments.validate_only:
            _tell_valid(session, training)
            return ExitCode.OK
        if arguments.detach:
            _tell_started(session, training)
            return exit_codes.of_state(training.state)
        return await follow(session, client, training)


def read_strategy(arguments: TrainArguments) -> tuple[str, str | None]:
    """Return the strategy's text, and its name if the backend is to look it up (the text is then a placeholder)."""
    given = arguments.strategy
    path = Path(given)
    is_file = path.is_file() or path.suffix in _SUFFIXES or "/" in given
    if not is_file:
        from ktrdr_core.config.naming import check_name

        check_name(given, field="strategy", what="strategy")
        if arguments.assignments:
            raise InvalidInputError(
                f"--set changes a strategy file, and {given!r} is none here; give the path of the file", field="set"
            )
        return f"name: {given}\n", given
    try:
        text = read_strategy_text(path)
    except OSError as error:
        raise StrategyNotFoundError(f"{path} cannot be read ({error.strerror}); check its permissions") from error
    parse_strategy(text, source=str(path))
    if arguments.assignments:
        from ktrdr_client.cli.assignments import apply_assignments

        text = apply_assignments(text, arguments.assignments)
        parse_strategy(text, source=f"{path} with --set {' --set '.join(arguments.assignments)}")
    return text, None


def build_spec(arguments: TrainArguments, text: str) -> TrainingSpec:
    """Return the spec of what was typed.

    Raises:
        InvalidSpecError: A value breaks a rule.
    """
    return TrainingSpec(
        strategy_yaml=text,
        symbols=_names(arguments.symbols, "--symbols"),
        timeframes=_names(arguments.timeframes, "--timeframes"),
        start_date=parse_day(arguments.start, "--start"),
        end_date=parse_day(arguments.end, "--end"),
        epochs=arguments.epochs,
        batch_size=arguments.batch_size,
        learning_rate=arguments.learning_rate,
        require_gpu=arguments.require_gpu,
        execution_mode=ExecutionMode(arguments.mode) if arguments.mode else None,
        data_mode=DataMode(arguments.data_mode) if arguments.data_mode else DataMode.BACKEND,
        seed=42 if arguments.seed is None else arguments.seed,
    )


def build_scheduling(arguments: TrainArguments, user: str) -> Scheduling:
    """Return what is asked of the queue.

    Args:
        arguments: What was typed.
        user: Whose training it is where nothing was typed.

    Raises:
        InvalidSpecError: A value breaks a rule.
    """
    retries = arguments.retries
    return Scheduling(
        user=user if arguments.user is None else arguments.user,
        priority=arguments.priority,
        retry=RetryMode.NEVER if retries == 0 else DEFAULT_SCHEDULING.retry,
        max_retries=DEFAULT_SCHEDULING.max_retries if retries is None else retries,
    )


def parse_day(text: str | None, option: str) -> date | None:
    """Return the day of `YYYY-MM-DD`; None stays None."""
    if text is None:
        return None
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise InvalidSpecError(f"{option} must be a day such as 2017-06-30, was {text!r}", field=option) from None


def _names(text: str | None, option: str) -> tuple[str, ...]:
    if text is None:
        return ()
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if not names:
        raise InvalidSpecError(f"{option} names nothing; give it as A or A,B, or leave it out", field=option)
    return names


def _tell_started(session: CliSession, training: Training) -> None:
    if session.is_json:
        session.write_json(json_lines.line("training", training))
        return
    session.say(training.training_id)
    session.note(f"watch it with: {session.command(f'watch {training.training_id}')}")


def _tell_valid(session: CliSession, training: Training) -> None:
    if session.is_json:
        session.write_json(json_lines.line("training", training))
        return
    spec = training.spec
    session.say(f"{training.strategy_name} is valid; nothing was trained")
    if spec is None:
        return
    rows = {
        "symbols": ", ".join(spec.symbols),
        "timeframes": ", ".join(spec.timeframes),
        "from": str(spec.start_date or "the first bar"),
        "to": str(spec.end_date or "the last bar"),
        "epochs": "" if spec.epochs is None else str(spec.epochs),
        "batch size": "" if spec.batch_size is None else str(spec.batch_size),
        "learning rate": "" if spec.learning_rate is None else f"{spec.learning_rate:g}",
        "seed": str(spec.seed),
        "bars from": _BARS_FROM.get(spec.data_mode, spec.data_mode.value),
        "mode": spec.execution_mode.value if spec.execution_mode else "as the backend is configured",
    }
    for key, value in rows.items():
        if value:
            session.say(f"{key:<14} {value}")
