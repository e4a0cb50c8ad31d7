"""`ktrdr models`: the commands, their arguments and help."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from ktrdr_client.cli.options import FLAG, EndDate, Json, StartDate, go, session_of
from ktrdr_core.domain.export_format import ExportFormat
from ktrdr_core.domain.spec import ExecutionMode
from ktrdr_core.storage.model_query import ModelOrder, ModelQuery

models_app = typer.Typer(help="The model store.", no_args_is_help=True)

StoredModel = Annotated[
    str,
    typer.Argument(metavar="MODEL", help="Name in the store, set and alias, strategy (its newest), or a model id."),
]


class CompressionWord(StrEnum):
    """The words of `ktrdr_core.rpc.codec_choice.Compression`, which would load grpc."""

    AUTO = "auto"
    NONE = "none"
    ZSTD = "zstd"
    GZIP = "gzip"


Compression = Annotated[CompressionWord, typer.Option(help="Of what travels. Default: what data and link make pay.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", metavar=FLAG, help="Do not ask.")]


@models_app.command(name="list")
def models_list(
    context: typer.Context,
    strategy: Annotated[str, typer.Option(help="Only this strategy.")] = "",
    symbol: Annotated[str, typer.Option(help="Only models trained on this instrument, among others.")] = "",
    timeframe: Annotated[str, typer.Option(help="Only models trained on this timeframe, among others.")] = "",
    training: Annotated[str, typer.Option(metavar="ID", help="Only models of this training.")] = "",
    alias: Annotated[str, typer.Option(help="Only models this alias points at.")] = "",
    series_digest: Annotated[
        str, typer.Option(metavar="DIGEST", help="Only models trained on the bars with this digest.")
    ] = "",
    since: Annotated[str | None, typer.Option(metavar="DATE", help="Published on this day (UTC) or later.")] = None,
    until: Annotated[str | None, typer.Option(metavar="DATE", help="Published on this day or earlier.")] = None,
    sort: Annotated[ModelOrder, typer.Option(help="Best, largest or newest first; names ascending.")] = (
        ModelOrder.NEWEST
    ),
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 50,
    kept_aside: Annotated[
        bool, typer.Option("--kept-aside", metavar=FLAG, help="List the artifacts of attempts that were given up.")
    ] = False,
    as_json: Json = False,
) -> int:
    """List stored models, newest first."""
    from ktrdr_client.cli.model_commands import list_models as body
    from ktrdr_client.cli.model_commands import published_between

    start_time, end_time = published_between(since, until)
    query = ModelQuery(
        strategy_name=strategy,
        symbol=symbol,
        timeframe=timeframe,
        training_id=training,
        alias=alias,
        series_digest=series_digest,
        start_time=start_time,
        end_time=end_time,
        order=sort,
        kept_aside=kept_aside,
    )
    return go(body(session_of(context, is_json=as_json), query, limit=limit))


@models_app.command(name="show")
def models_show(context: typer.Context, model: StoredModel, as_json: Json = False) -> int:
    """Show one stored model."""
    from ktrdr_client.cli.model_commands import show as body

    return go(body(session_of(context, is_json=as_json), model))


@models_app.command(name="pull")
def models_pull(
    context: typer.Context,
    model: StoredModel,
    to: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where its files go. Default: its name, below this directory.")
    ] = None,
    compression: Compression = CompressionWord.AUTO,
    as_json: Json = False,
) -> int:
    """Bring a model here, verified; goes on where an interrupted pull ended."""
    from ktrdr_client.cli.transfer_command import pull as body

    return go(
        body(
            session_of(context, is_json=as_json),
            model,
            to=to.expanduser() if to else None,
            compression=compression.value,
        )
    )


@models_app.command(name="import")
def models_import(
    context: typer.Context,
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Model directory.")],
    compression: Compression = CompressionWord.AUTO,
    as_json: Json = False,
) -> int:
    """Put a model directory into the backend's store, as the next version."""
    from ktrdr_client.cli.transfer_command import import_model as body

    return go(body(session_of(context, is_json=as_json), directory.expanduser(), compression=compression.value))


@models_app.command(name="delete")
def models_delete(
    context: typer.Context,
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Name of a version or of what is kept aside; no alias, no strategy.")
    ],
    force: Annotated[
        bool, typer.Option("--force", metavar=FLAG, help="Also if an alias points at it; the alias goes, too.")
    ] = False,
    yes: Yes = False,
    as_json: Json = False,
) -> int:
    """Delete a version."""
    from ktrdr_client.cli.model_upkeep_commands import delete as body

    return go(body(session_of(context, is_json=as_json), name, force=force, yes=yes))


@models_app.command(name="alias")
def models_alias(
    context: typer.Context,
    parent: Annotated[str, typer.Argument(metavar="SET", help="Such as neuro_mean_reversion/EURUSD_1h.")],
    alias: Annotated[str, typer.Argument(metavar="ALIAS", help="Such as champion.")],
    version: Annotated[str | None, typer.Argument(metavar="[VERSION]", help="Such as 3.")] = None,
    remove: Annotated[bool, typer.Option("--remove", metavar=FLAG, help="Remove it instead.")] = False,
    expect: Annotated[
        str | None, typer.Option(metavar="N|none", help="Only if it points at this version now, or at none.")
    ] = None,
    as_json: Json = False,
) -> int:
    """Point an alias at a version, or remove it."""
    from ktrdr_client.cli.model_upkeep_commands import set_alias as body

    return go(
        body(session_of(context, is_json=as_json), parent, alias, version, remove=remove, expect=expect),
    )


@models_app.command(name="gc")
def models_gc(
    context: typer.Context,
    keep_versions: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Also remove versions beyond the N newest of a set that no alias names."),
    ] = None,
    kept_aside_days: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Remove what was kept aside so long ago. Default: 30.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", metavar=FLAG, help="Say what would be removed, remove nothing.")
    ] = False,
    yes: Yes = False,
    as_json: Json = False,
) -> int:
    """Remove from the store what nothing refers to."""
    from ktrdr_client.cli.model_upkeep_commands import collect_garbage as body

    return go(
        body(
            session_of(context, is_json=as_json),
            keep_versions=keep_versions,
            kept_aside_days=kept_aside_days,
            dry_run=dry_run,
            yes=yes,
        )
    )


@models_app.command(name="predict")
def models_predict(
    context: typer.Context,
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Model directory, name in the store, or strategy (its newest).")
    ],
    symbol: Annotated[str | None, typer.Option(help="Instrument. Default: the one the model was trained on.")] = None,
    start: StartDate = None,
    end: EndDate = None,
    bars_dir: Annotated[
        Path | None, typer.Option(help="Bars. Default: KTRDR_BARS_DIR, or data, or the backend's.")
    ] = None,
    as_json: Json = False,
) -> int:
    """Print a model's decision for each bar; without dates for the last 24 bars."""
    from ktrdr_client.cli.predict_command import predict as body

    return go(
        body(session_of(context, is_json=as_json), model, symbol=symbol, start=start, end=end, bars_dir=bars_dir),
    )


@models_app.command(name="compare")
def models_compare(
    context: typer.Context,
    first: Annotated[str, typer.Argument(metavar="FIRST", help="Model directory, or a name as for show.")],
    second: Annotated[str, typer.Argument(metavar="SECOND", help="The one to hold against it.")],
    as_json: Json = False,
) -> int:
    """Compare two models: metrics side by side, and what differs in configuration, data and lineage."""
    from ktrdr_client.cli.compare_command import compare as body

    return go(body(session_of(context, is_json=as_json), first, second))


@models_app.command(name="export")
def models_export(
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Model directory, or a name as for show.")],
    export_format: Annotated[
        ExportFormat,
        typer.Option("--format", help="pt: state dict; full: with architecture and preprocessing; onnx: a graph."),
    ],
    target: Annotated[
        Path | None, typer.Option("--to", metavar="FILE", help="Default: named after the model, in this directory.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", metavar=FLAG, help="Replace a file that is there.")] = False,
    as_json: Json = False,
) -> int:
    """Write a model as a file for other programs."""
    from ktrdr_client.cli.export_command import export as body

    return go(
        body(session_of(context, is_json=as_json), model, export_format=export_format, target=target, force=force),
    )


@models_app.command(name="verify")
def models_verify(
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Model directory, or a name as for show.")],
    retrain: Annotated[
        bool, typer.Option("--retrain", metavar=FLAG, help="Train it again, and compare bit for bit.")
    ] = False,
    mode: Annotated[
        ExecutionMode | None, typer.Option(help="With --retrain: where to run. Default: as the backend is configured.")
    ] = None,
    keep: Annotated[
        bool, typer.Option("--keep", metavar=FLAG, help="With --retrain: keep the new version also if it is the same.")
    ] = False,
    as_json: Json = False,
) -> int:
    """Check every file of a model against its digest; exit code 3 if one is not sound."""
    from ktrdr_client.cli.verify_command import verify as body

    return go(
        body(
            session_of(context, is_json=as_json), model, retrain=retrain, mode=mode.value if mode else None, keep=keep
        ),
    )
