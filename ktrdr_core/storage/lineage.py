"""Reads from an artifact's files where a model comes from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ktrdr_core.storage.stored_model import Lineage, ParentCheckpoint, SeriesDigest


def build_lineage(config: Mapping[str, Any], metadata: Mapping[str, Any]) -> Lineage:
    """Return the lineage that `config.json` and `metadata.json` tell; what they do not tell stays empty.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: They tell it in another form.
    """
    data_config = config["data_config"]
    series = tuple(
        SeriesDigest(
            symbol=_text(symbol),
            timeframe=_text(entry["timeframe"]),
            num_bars=_number(entry["num_bars"]),
            digest=_text(entry["sha256"]),
        )
        for symbol, entries in data_config.get("bars", {}).items()
        for entry in entries
    )
    seed = config["training_config"].get("seed")
    parent = metadata.get("resumed_from")
    return Lineage(
        strategy_digest=_text(config.get("strategy_digest", "")),
        series=series,
        start_date=_text(data_config.get("start_date", "")),
        end_date=_text(data_config.get("end_date", "")),
        data_mode=_text(metadata.get("data_mode", "")),
        code_version=_text(metadata.get("code_version", "")),
        seed=None if seed is None else _number(seed),
        parent_checkpoint=(
            None if parent is None else ParentCheckpoint(epoch=_number(parent["epoch"]), sha256=_text(parent["sha256"]))
        ),
    )


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    value.encode()  # refuses half a surrogate pair, which JSON can hold and nothing else
    return value


def _number(value: object) -> int:
    # As large as the wire takes.
    if not isinstance(value, int) or not -(2**63) <= value < 2**63:
        raise TypeError(f"{value!r} is no whole number of 64 bits")
    return value
