"""`ktrdr strategies list` and `validate`."""

from __future__ import annotations

from pathlib import Path

from ktrdr_client.cli import formats, json_lines
from ktrdr_client.cli.exit_codes import ExitCode
from ktrdr_client.cli.session import CliSession
from ktrdr_core.errors import StrategyNotFoundError


async def list_strategies(session: CliSession) -> int:
    """List the backend's strategies with their status."""
    from ktrdr_client.cli.tables import say_table

    async with session.client() as client:
        strategies = await client.list_strategies()
    if session.is_json:
        for strategy in strategies:
            session.write_json(json_lines.line("strategy", strategy))
        return ExitCode.OK
    rows = [
        (
            strategy.name,
            ", ".join(strategy.symbols),
            ", ".join(strategy.timeframes),
            f"trained v{strategy.latest_version}" if strategy.latest_version else strategy.status.value,
            formats.moment(strategy.last_training_time),
            strategy.error or strategy.description,
        )
        for strategy in strategies
    ]
    say_table(
        session,
        ("name", "symbols", "timeframes", "status", "last training (UTC)", ""),
        rows,
        empty="the backend's strategies directory is empty; start it with --strategies-dir DIRECTORY",
    )
    return ExitCode.OK


def validate(session: CliSession, path: Path) -> int:
    """Check a strategy file as far as that goes without bars."""
    from ktrdr_core.config.loader import parse_strategy, read_strategy_text
    from ktrdr_core.domain.spec import TrainingSpec
    from ktrdr_core.training.preflight import prepare_strategy

    try:
        text = read_strategy_text(path)
    except OSError as error:
        raise StrategyNotFoundError(f"{path} cannot be read ({error.strerror}); check its permissions") from error
    strategy = parse_strategy(text, source=str(path))
    prepare_strategy(TrainingSpec(strategy_yaml=text))
    if session.is_json:
        session.write_json(
            json_lines.line(
                "strategy_check",
                {
                    "name": strategy.name,
                    "symbols": strategy.symbols,
                    "timeframes": strategy.timeframes,
                    "is_valid": True,
                },
            )
        )
        return ExitCode.OK
    session.say(f"{path} is valid: {strategy.name}, {', '.join(strategy.symbols)}, {', '.join(strategy.timeframes)}")
    session.note(f"check it against the bars with: {session.command(f'train {path} --validate-only')}")
    return ExitCode.OK
