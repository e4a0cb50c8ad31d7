"""What the index of a model store keeps of a version, and how it is asked for."""

from __future__ import annotations

import base64
import json
import math
import sqlite3
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC
from hashlib import sha256
from pathlib import Path
from typing import Any

from ktrdr_core.clock import from_iso, to_iso
from ktrdr_core.errors import InvalidInputError
from ktrdr_core.storage.artifact_files import ArtifactFile
from ktrdr_core.storage.layout import ASIDE_DIR, ASIDE_NAME, split_version
from ktrdr_core.storage.model_query import ModelOrder, ModelQuery
from ktrdr_core.storage.stored_model import Lineage, ModelSummary, ParentCheckpoint, SeriesDigest

_LARGEST = 2**63 - 1
_MAX_TOKEN_LENGTH = 2000
# The summary is in a table of its own, so that sums and sorts go over narrow rows.
_COLUMNS = (
    "directory, entry, (SELECT content FROM summaries WHERE model = id), "
    "(SELECT group_concat(alias, '/') FROM aliases a WHERE a.directory = models.directory AND a.entry = models.entry)"
)

# Columns in one direction each, so that a page begins where the one before ended by one comparison of rows.
_ORDERS: dict[ModelOrder, tuple[str, ...]] = {
    ModelOrder.NEWEST: ("create_time", "version", "name"),
    ModelOrder.NAME: ("strategy_name", "set_name", "version", "name"),
    ModelOrder.TEST_ACCURACY: ("accuracy", "create_time", "version", "name"),
    ModelOrder.TEST_F1: ("f1", "create_time", "version", "name"),
    ModelOrder.VALIDATION_LOSS: ("negative_loss", "create_time", "version", "name"),
    ModelOrder.SIZE: ("size_bytes", "create_time", "version", "name"),
}
_NUMBERS = {"version", "accuracy", "f1", "negative_loss", "size_bytes"}


@dataclass(frozen=True, slots=True)
class IndexedEntry:
    """A directory as the index knows it: sound with its `model`, or damaged with its `problem`.

    Attributes:
        directory: Strategy, or ASIDE_DIR.
        entry: Name of the version's directory.
        inode: Of that directory; another one is another version.
        model: What it is; None if it is damaged.
        problem: What is wrong with it; "" if it is sound.
        signature: Changes when a damaged one is changed.
        size_bytes: Of its files.
    """

    directory: str
    entry: str
    inode: str
    model: ModelSummary | None
    problem: str
    signature: str
    size_bytes: int


def insert_entry(connection: sqlite3.Connection, entry: IndexedEntry) -> None:
    """Put `entry` in the place of what was known under its name."""
    connection.execute("DELETE FROM models WHERE directory = ? AND entry = ?", (entry.directory, entry.entry))
    model, is_kept_aside = entry.model, entry.directory == ASIDE_DIR
    version = None if is_kept_aside else split_version(entry.entry)
    row = connection.execute(
        "INSERT INTO models (directory, entry, inode, problem, signature, size_bytes, is_kept_aside, name, set_name, "
        "version, model_id, strategy_name, training_id, attempt, create_time, accuracy, f1, negative_loss) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            entry.directory,
            entry.entry,
            entry.inode,
            entry.problem,
            entry.signature,
            entry.size_bytes,
            is_kept_aside,
            model.name if model else "",
            version[0] if version else entry.entry,
            version[1] if version else 0,
            model.model_id.lower() if model else "",
            model.strategy_name if model else "",
            model.training_id if model else "",
            model.attempt if model else 0,
            to_iso(model.create_time) if model else "",
            float(model.test_metrics["accuracy"]) if model else 0.0,
            float(model.test_metrics["f1_score"]) if model else 0.0,
            -float(model.training_metrics["val_loss"]) if model else 0.0,
        ),
    ).lastrowid
    if model is None:
        return
    connection.execute("INSERT INTO summaries VALUES (?, ?)", (row, _render(model)))
    facts = {("symbol", symbol) for symbol in model.symbols}
    facts |= {("timeframe", timeframe) for timeframe in model.timeframes}
    facts |= {("series", series.digest) for series in model.lineage.series}
    connection.executemany("INSERT INTO facts VALUES (?, ?, ?)", [(*fact, row) for fact in sorted(facts)])
    connection.executemany(
        "INSERT INTO files VALUES (?, ?, ?, ?)",
        [(file.sha256, row, file.name, file.size_bytes) for file in model.files],
    )


def select_page(
    connection: sqlite3.Connection, root: Path, query: ModelQuery, *, limit: int | None, after: str
) -> tuple[list[ModelSummary], str]:
    """Return models in the order of `query`, and the token of what follows.

    Raises:
        InvalidInputError: `after` is no token of this query.
    """
    columns = _ORDERS[query.order]
    is_ascending = query.order is ModelOrder.NAME
    # Few models pass these filters: they are found first and then sorted. Else the index of the order is followed until
    # a page is full. A unary plus keeps SQLite from using an index; it has no statistics, and guesses wrong.
    is_selective = bool(query.strategy_name or query.training_id or query.alias or query.series_digest)
    plus = "+" if is_selective else ""
    conditions, values = _conditions(query)
    conditions += ["problem = ''", f"{plus}is_kept_aside = ?"]
    values.append(query.kept_aside)
    keys = [f"{plus}{column}" for column in columns]
    if after:
        marks = ", ".join("?" * len(columns))
        conditions.append(f"({', '.join(keys)}) {'>' if is_ascending else '<'} ({marks})")
        values += _decode_token(after, query)
    order = ", ".join(f"{key} {'ASC' if is_ascending else 'DESC'}" for key in keys)
    # The summaries are fetched last: what is sorted is narrow.
    rows = connection.execute(
        f"SELECT {_COLUMNS}, {', '.join(columns)} FROM ("  # noqa: S608  # of constants alone
        f"SELECT id AS picked FROM models WHERE {' AND '.join(conditions)} ORDER BY {order} LIMIT ?"
        f") CROSS JOIN models ON models.id = picked ORDER BY {order}",
        (*values, -1 if limit is None else limit + 1),
    ).fetchall()
    has_more = limit is not None and len(rows) > limit
    rows = rows[:limit]
    return [_summary(root, row) for row in rows], _encode_token(query, rows[-1][4:]) if has_more else ""


def select_where(
    connection: sqlite3.Connection, root: Path, condition: str, values: Sequence[object], *, limit: int = -1
) -> list[ModelSummary]:
    """Return the sound models for which an SQL condition holds, newest first; see `select_page` for its unary plus."""
    rows = connection.execute(
        f"SELECT {_COLUMNS} FROM models WHERE problem = '' AND ({condition}) "  # noqa: S608  # of constants alone
        "ORDER BY create_time DESC, version DESC, name DESC LIMIT ?",
        (*values, limit),
    )
    return [_summary(root, row) for row in rows.fetchall()]


def _conditions(query: ModelQuery) -> tuple[list[str], list[object]]:
    """Return what the filters ask for, and the values it is compared with."""
    conditions: list[str] = []
    values: list[object] = []

    def require(condition: str, *compared: object) -> None:
        if compared[-1]:
            conditions.append(condition)
            values.extend(compared)

    require("strategy_name = ?", query.strategy_name)
    require("training_id = ?", query.training_id)
    for kind, value in (("symbol", query.symbol), ("timeframe", query.timeframe), ("series", query.series_digest)):
        require("id IN (SELECT model FROM facts WHERE kind = ? AND value = ?)", kind, value)
    require("(directory, entry) IN (SELECT directory, entry FROM aliases WHERE alias = ?)", query.alias)
    require("create_time >= ?", to_iso(query.start_time) if query.start_time else "")
    require("create_time < ?", to_iso(query.end_time) if query.end_time else "")
    return conditions, values


def _fingerprint(query: ModelQuery) -> str:
    """Return what tells two queries apart."""
    facts = [str(value.astimezone(UTC)) if hasattr(value, "astimezone") else value for value in asdict(query).values()]
    return sha256(json.dumps(facts).encode()).hexdigest()[:16]


def _encode_token(query: ModelQuery, keys: Sequence[object]) -> str:
    return base64.urlsafe_b64encode(json.dumps([_fingerprint(query), *keys]).encode()).decode()


def _decode_token(token: str, query: ModelQuery) -> list[object]:
    columns = _ORDERS[query.order]
    try:
        if len(token) > _MAX_TOKEN_LENGTH:
            raise ValueError("too long")
        fingerprint, *keys = json.loads(base64.b64decode(token, altchars=b"-_", validate=True))
        if fingerprint != _fingerprint(query) or len(keys) != len(columns):
            raise ValueError("of another query")
        if not all(map(_is_key, columns, keys)):
            raise ValueError("no keys")
    except (ValueError, TypeError, RecursionError):
        raise InvalidInputError(
            f"page_token {token[:80]!r} was not made by this store for this order and these filters; take it from the "
            "page before",
            field="page_token",
        ) from None
    return list(keys)


def _is_key(column: str, value: object) -> bool:
    if column in _NUMBERS:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return is_number and math.isfinite(value) and -_LARGEST <= value <= _LARGEST  # type: ignore[arg-type,operator]
    return isinstance(value, str) and value.isascii()


def _render(model: ModelSummary) -> str:
    raw: dict[str, Any] = {
        "model_id": model.model_id,
        "strategy_name": model.strategy_name,
        "symbols": model.symbols,
        "timeframes": model.timeframes,
        "create_time": to_iso(model.create_time),
        "training_id": model.training_id,
        "attempt": model.attempt,
        "digest": model.digest,
        "files": [[file.name, file.size_bytes, file.sha256] for file in model.files],
        "training_metrics": model.training_metrics,
        "test_metrics": model.test_metrics,
        "feature_importance": model.feature_importance,
        "lineage": asdict(model.lineage),
    }
    return json.dumps(raw)


def _summary(root: Path, row: Sequence[Any]) -> ModelSummary:
    directory, entry, rendered, aliases = row[:4]
    raw = json.loads(rendered)
    is_kept_aside = directory == ASIDE_DIR
    version = None if is_kept_aside else split_version(entry)
    lineage = raw["lineage"]
    parent = lineage["parent_checkpoint"]
    return ModelSummary(
        name=f"{ASIDE_NAME if is_kept_aside else directory}/{entry}",
        path=root / directory / entry,
        model_id=raw["model_id"],
        strategy_name=raw["strategy_name"],
        symbols=tuple(raw["symbols"]),
        timeframes=tuple(raw["timeframes"]),
        version=version[1] if version else 0,
        create_time=from_iso(raw["create_time"]),
        training_id=raw["training_id"],
        attempt=raw["attempt"],
        digest=raw["digest"],
        files=tuple(ArtifactFile(*file) for file in raw["files"]),
        training_metrics=raw["training_metrics"],
        test_metrics=raw["test_metrics"],
        feature_importance=raw["feature_importance"],
        lineage=Lineage(
            **lineage
            | {
                "series": tuple(SeriesDigest(**series) for series in lineage["series"]),
                "parent_checkpoint": ParentCheckpoint(**parent) if parent else None,
            }
        ),
        aliases=split_aliases(aliases),
        is_kept_aside=is_kept_aside,
    )


def split_aliases(joined: str | None) -> tuple[str, ...]:
    """Return the aliases that a row of `aliases` columns tells, `latest` first."""
    return tuple(sorted((joined or "").split("/") if joined else (), key=lambda alias: (alias != "latest", alias)))
