"""The commands of `ktrdr`: their arguments and help. Bodies are imported when they run, so that help is instant."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from ktrdr_client.cli.data_app import data_app
from ktrdr_client.cli.models_app import models_app
from ktrdr_client.cli.options import FLAG, EndDate, Json, StartDate, TrainingId, go, session_of
from ktrdr_client.cli.security_app import security_app
from ktrdr_client.cli.session import CliSession
from ktrdr_client.cli.trainers_app import trainers_app
from ktrdr_client.settings import ClientSettings

app = typer.Typer(
    name="ktrdr",
    help="Train neuro-fuzzy trading models from one YAML file, on this machine or on trainers with GPUs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
strategies_app = typer.Typer(help="Strategy files.", no_args_is_help=True)
config_app = typer.Typer(help="The backend's configuration.", no_args_is_help=True)
backend_app = typer.Typer(help="The backend service.", no_args_is_help=True)
trainer_app = typer.Typer(help="The trainer service.", no_args_is_help=True)
app.add_typer(models_app, name="models")
app.add_typer(strategies_app, name="strategies")
app.add_typer(config_app, name="config")
app.add_typer(backend_app, name="backend")
app.add_typer(trainer_app, name="trainer")
app.add_typer(data_app, name="data")
app.add_typer(trainers_app, name="trainers")
app.add_typer(security_app, name="security")
_PASS_THROUGH = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


class Mode(StrEnum):
    AUTO = "auto"
    LOCAL = "local"
    HOST = "host"


class BarsFrom(StrEnum):
    BACKEND = "backend"
    LOCAL = "local"
    CSV = "csv"


def _print_version(is_asked: bool) -> None:
    if is_asked:
        from importlib.metadata import version

        typer.echo(f"ktrdr {version('ktrdr')}")
        raise typer.Exit


@app.callback()
def main_options(
    context: typer.Context,
    backend: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Backend to talk to; also KTRDR_BACKEND. Without it an embedded one is started when needed.",
        ),
    ] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(help="State of the embedded backend; also KTRDR_DATA_DIR. Default: ~/.local/share/ktrdr."),
    ] = None,
    tls_ca: Annotated[
        Path | None, typer.Option(metavar="FILE", help="CA of the backend, for TLS; also KTRDR_TLS_CA.")
    ] = None,
    tls_cert: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Own certificate, where the backend wants one; also KTRDR_TLS_CERT."),
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(metavar="FILE", help="Its key; also KTRDR_TLS_KEY.")] = None,
    token_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="File with the token to send; also KTRDR_TOKEN_FILE.")
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", metavar=FLAG, help="Show tracebacks.")] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version", metavar=FLAG, is_eager=True, callback=_print_version, help="Print the version and end."
        ),
    ] = False,
) -> None:
    del version  # its callback has ended the run
    settings = ClientSettings.load(
        backend=backend,
        data_dir=data_dir,
        tls_ca=tls_ca,
        tls_cert=tls_cert,
        tls_key=tls_key,
        token_file=token_file,
        is_debug=debug,
    )
    context.obj = CliSession(settings=settings)


@app.command()
@models_app.command()
def train(
    context: typer.Context,
    strategy: Annotated[
        str, typer.Argument(metavar="STRATEGY", help="Strategy file, or name of a strategy the backend knows.")
    ],
    symbols: Annotated[str | None, typer.Option(metavar="A,B", help="Instead of the strategy's symbols.")] = None,
    timeframes: Annotated[str | None, typer.Option(metavar="A,B", help="Instead of its timeframes.")] = None,
    start: StartDate = None,
    end: EndDate = None,
    mode: Annotated[Mode | None, typer.Option(help="Where to run. Default: as the backend is configured.")] = None,
    data_mode: Annotated[
        BarsFrom | None,
        typer.Option(help="Bars of the backend (default), or of the machine that trains: its store, its CSV files."),
    ] = None,
    require_gpu: Annotated[
        bool, typer.Option("--require-gpu", metavar=FLAG, help="Fail rather than run without a GPU.")
    ] = False,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training part.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Rows per optimiser update.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Learning rate.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of every random draw. Default: 42.")] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="PATH=VALUE", help="Change the strategy, such as indicators[0].period=21."),
    ] = None,
    user: Annotated[
        str | None, typer.Option(help="Whose training it is, for the fair share; also KTRDR_USER. Default: your login.")
    ] = None,
    priority: Annotated[int, typer.Option(help="-100 to 100; a higher one goes first.")] = 0,
    retries: Annotated[
        int | None, typer.Option(metavar="N", help="Further attempts after a lost trainer; 0: none. Default: 5.")
    ] = None,
    request_id: Annotated[
        str | None, typer.Option(help="Idempotency key: the same one again answers the same training.")
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", metavar=FLAG, help="Do not watch; print the id and end.")] = False,
    validate_only: Annotated[
        bool, typer.Option("--validate-only", metavar=FLAG, help="Check everything, train nothing.")
    ] = False,
    as_json: Json = False,
) -> int:
    """Train a strategy and watch it."""
    from ktrdr_client.cli.train_command import TrainArguments
    from ktrdr_client.cli.train_command import train as body

    arguments = TrainArguments(
        strategy=strategy,
        symbols=symbols,
        timeframes=timeframes,
        start=start,
        end=end,
        mode=mode.value if mode else None,
        data_mode=data_mode.value if data_mode else None,
        require_gpu=require_gpu,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        seed=seed,
        assignments=tuple(assignments or ()),
        detach=detach,
        validate_only=validate_only,
        user=user,
        priority=priority,
        retries=retries,
        request_id=request_id,
    )
    return go(body(session_of(context, is_json=as_json), arguments))


@app.command()
def watch(context: typer.Context, training_id: TrainingId, as_json: Json = False) -> int:
    """Watch a training until it ends."""
    from ktrdr_client.cli.training_commands import watch as body

    return go(body(session_of(context, is_json=as_json), training_id))


@app.command()
def cancel(
    context: typer.Context,
    training_ids: Annotated[
        list[str] | None, typer.Argument(metavar="[ID]...", help="Ids of trainings, or their first characters.")
    ] = None,
    request_id: Annotated[
        str | None, typer.Option(help="Instead of an id: what Train was given, also before it arrives.")
    ] = None,
    queued: Annotated[
        bool, typer.Option("--queued", metavar=FLAG, help="All queued trainings of the backend, of every user.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", metavar=FLAG, help="With --queued: do not ask.")] = False,
    save_checkpoint: Annotated[
        bool, typer.Option("--save-checkpoint", metavar=FLAG, help="Stop at the next batch and keep a checkpoint.")
    ] = False,
    as_json: Json = False,
) -> int:
    """End trainings; answers when their workers are gone."""
    from ktrdr_client.cli.cancel_command import cancel as body

    return go(
        body(
            session_of(context, is_json=as_json),
            training_ids or (),
            request_id=request_id,
            is_queued=queued,
            yes=yes,
            save_checkpoint=save_checkpoint,
        )
    )


@app.command()
def show(
    context: typer.Context,
    training_id: TrainingId,
    events: Annotated[bool, typer.Option("--events", metavar=FLAG, help="Print every event, too.")] = False,
    as_json: Json = False,
) -> int:
    """Tell the whole story of one training."""
    from ktrdr_client.cli.story import show as body

    return go(body(session_of(context, is_json=as_json), training_id, with_events=events))


@app.command(name="list")
def list_trainings(
    context: typer.Context,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 20,
    as_json: Json = False,
) -> int:
    """List trainings, newest first."""
    from ktrdr_client.cli.training_commands import list_trainings as body

    return go(body(session_of(context, is_json=as_json), limit))


@app.command()
def doctor(context: typer.Context, as_json: Json = False) -> int:
    """Check addresses, versions, clocks, disk, devices and more, and say what to do."""
    from ktrdr_client.cli.doctor import doctor as body

    return go(body(session_of(context, is_json=as_json)))


@config_app.command(name="get")
def config_get(context: typer.Context, as_json: Json = False) -> int:
    """Show the backend's configuration."""
    from ktrdr_client.cli.training_commands import config_get as body

    return go(body(session_of(context, is_json=as_json)))


@config_app.command(name="set")
def config_set(
    context: typer.Context,
    key: Annotated[str, typer.Argument(metavar="KEY", help="default_mode")],
    value: Annotated[str, typer.Argument(metavar="VALUE", help="auto, local or host")],
    as_json: Json = False,
) -> int:
    """Change the backend's configuration; kept across restarts."""
    from ktrdr_client.cli.training_commands import config_set as body

    return go(body(session_of(context, is_json=as_json), key, value))


@backend_app.command(name="serve", context_settings=_PASS_THROUGH)
def backend_serve(context: typer.Context) -> int:
    """Run a backend here; its flags: ktrdr backend serve --help."""
    from ktrdr_client.cli.service_commands import serve

    return serve("backend_service", context.args, session_of(context))


@trainer_app.command(name="serve", context_settings=_PASS_THROUGH)
def trainer_serve(context: typer.Context) -> int:
    """Run a trainer here; its flags: ktrdr trainer serve --help."""
    from ktrdr_client.cli.service_commands import serve

    return serve("trainer_service", context.args, session_of(context))


@app.command()
def up(
    context: typer.Context,
    host: Annotated[str, typer.Option(help="Address both listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the backend; 0 picks one.")] = 50051,
    trainer_port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the trainer; 0 picks one.")] = 50052,
    bars_dir: Annotated[Path | None, typer.Option(help="Bars. Default: data.")] = None,
    strategies_dir: Annotated[Path | None, typer.Option(help="Strategies. Default: strategies.")] = None,
    log_level: Annotated[str, typer.Option(help="DEBUG, INFO, WARNING or ERROR.")] = "INFO",
    insecure: Annotated[
        bool, typer.Option("--insecure", metavar=FLAG, help="Let other machines in without TLS and tokens.")
    ] = False,
) -> int:
    """Run a backend and a trainer here, together, until Ctrl-C."""
    from ktrdr_client.cli.service_commands import up as body

    session = session_of(context)
    return go(
        body(
            session,
            host=host,
            port=port,
            trainer_port=trainer_port,
            bars_dir=bars_dir or session.settings.bars_dir,
            strategies_dir=strategies_dir or session.settings.strategies_dir,
            log_level=log_level,
            is_insecure=insecure,
        ),
    )


@strategies_app.command(name="list")
def strategies_list(context: typer.Context, as_json: Json = False) -> int:
    """List the backend's strategies with their status."""
    from ktrdr_client.cli.strategy_commands import list_strategies as body

    return go(body(session_of(context, is_json=as_json)))


@strategies_app.command(name="validate")
def strategies_validate(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Strategy file.")],
    as_json: Json = False,
) -> int:
    """Check a strategy file, without bars and without a backend."""
    from ktrdr_client.cli.strategy_commands import validate as body

    return body(session_of(context, is_json=as_json), file)


@app.command(name="indicators")
def indicators(
    context: typer.Context,
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Show this one; an alias will do.")] = None,
    as_json: Json = False,
) -> int:
    """List the indicators a strategy may use, or show one; needs no backend."""
    from ktrdr_client.cli.indicator_command import list_indicators, show_indicator

    session = session_of(context, is_json=as_json)
    return list_indicators(session) if name is None else show_indicator(session, name)
