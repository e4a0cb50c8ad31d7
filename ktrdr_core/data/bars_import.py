"""Bars from elsewhere into a store: one Parquet file of exactly the columns of bars, bounded before it is read.

The file is hostile until proven otherwise: a service reads it in a process of its own, by `import_in_bounds`.
"""

from __future__ import annotations

import resource
from pathlib import Path

from ktrdr_core.data.bar_store import DirectoryBarStore
from ktrdr_core.data.importer import IfExists, ImportRequest, StagedImport, stage_import
from ktrdr_core.data.parquet_bars import COLUMNS, TIME_COLUMN
from ktrdr_core.data.partitions import read_manifest
from ktrdr_core.data.sniffing import refuse_file
from ktrdr_core.errors import (
    AlreadyExistsError,
    InvalidBarsError,
    InvalidInputError,
    SeriesNotFoundError,
    StorageError,
)

MAX_IMPORT_BARS = 20_000_000
"""Bars of one file: 38 years of minutes."""
MAX_ROW_GROUPS = 100_000
_MAX_METADATA_BYTES = 64 << 20
_MEMORY_BYTES = 1 << 30


def import_bars_file(path: Path, store: Path, symbol: str, timeframe: str, if_exists: IfExists) -> None:
    """Check the bars of a file and store them as a series, whole or not at all.

    A file whose bars are stored already, exactly these, is a success whatever `if_exists` says: the answer to an
    import may be lost, and its sender sends it again.

    Args:
        path: The Parquet file; its name is what messages call it.
        store: Directory of the store.
        symbol, timeframe: The series.
        if_exists: What to do with a stored series of this name.

    Raises:
        InvalidBarsError: The file is not as described, too large, or breaks a rule of the data; the row is named.
        AlreadyExistsError: The series is stored and `if_exists` refuses it, or a stored bar of the same time differs.
        IllegalStateError: Another import into the store is running.
        StorageError: The disk takes no writes.
    """
    _store(path, check_bars_file(path), store, symbol, timeframe, if_exists)


def import_in_bounds(path: Path, store: Path, symbol: str, timeframe: str, if_exists: IfExists) -> None:
    """Do `import_bars_file` with a limited amount of memory; for a process of its own, the limit stays.

    Raises:
        See `import_bars_file`; InvalidBarsError also where that is not enough.
    """
    _limit_memory()
    try:
        import_bars_file(path, store, symbol, timeframe, if_exists)
    except MemoryError as error:
        raise refuse_file(
            path, f"needs more than {_MEMORY_BYTES >> 20} MiB of memory to be read; write it with smaller row groups"
        ) from error


def check_bars_file(path: Path) -> int:
    """Return the number of bars that the footer of a Parquet file claims, if it has exactly the columns of bars.

    Raises:
        InvalidBarsError: It has not, cannot be read, or claims more than may be.
    """
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(
            path,
            pre_buffer=False,
            thrift_string_size_limit=_MAX_METADATA_BYTES,
            thrift_container_size_limit=MAX_ROW_GROUPS * len(COLUMNS),
        ) as file:
            num_bars, num_groups = file.metadata.num_rows, file.metadata.num_row_groups
            schema = file.schema_arrow
            names = list(schema.names)
    except (pa.ArrowException, OSError, ValueError) as error:  # a name that is no UTF-8 is a ValueError
        raise refuse_file(path, f"is no readable Parquet file ({' '.join(str(error).split())[:160]})") from error
    if not 0 < num_bars <= MAX_IMPORT_BARS:
        raise refuse_file(path, f"must have 1 to {MAX_IMPORT_BARS} bars, its footer says {num_bars}; send it in pieces")
    if num_groups > MAX_ROW_GROUPS:
        raise refuse_file(path, f"has {num_groups} row groups, {MAX_ROW_GROUPS} are allowed; write it with larger ones")
    if sorted(names) != sorted(COLUMNS):
        shown = ", ".join(names[:20])[:200]
        raise refuse_file(path, f"must have the columns {', '.join(COLUMNS)} and no other; has {shown or 'none'}")
    for field in schema:
        if field.name == TIME_COLUMN:
            if not pa.types.is_timestamp(field.type) or field.type.tz is None:
                raise refuse_file(path, f"column {TIME_COLUMN} must be timestamps with a zone, is {field.type}")
        elif not (pa.types.is_floating(field.type) or pa.types.is_integer(field.type)):
            raise refuse_file(path, f"column {field.name} must be numbers, is {field.type}")
    return int(num_bars)


def _store(path: Path, num_bars: int, store: Path, symbol: str, timeframe: str, if_exists: IfExists) -> None:
    request = ImportRequest(
        files=(path,),
        store=store,
        symbol=symbol,
        timeframe=timeframe,
        columns={name: name for name in COLUMNS},
        if_exists=IfExists.REPLACE if if_exists is IfExists.REFUSE else if_exists,
    )
    try:
        with stage_import(request) as staged:
            num_read = sum(file.num_rows for file in staged.files)
            if num_read != num_bars:
                raise refuse_file(path, f"has {num_read} bars, its footer says {num_bars}; write it anew")
            if if_exists is IfExists.REFUSE and _is_stored(staged, store, symbol, timeframe):
                return
            staged.publish()
    except InvalidInputError as error:
        if isinstance(error.__cause__, OSError) and not isinstance(error, InvalidBarsError):
            raise StorageError(f"the store of bars takes no writes: {error.__cause__}; free space there") from error
        raise


def _is_stored(staged: StagedImport, store: Path, symbol: str, timeframe: str) -> bool:
    """Return whether exactly these bars are stored; refuse them if others are."""
    try:
        _, directory = DirectoryBarStore(store).find(symbol, timeframe)
    except SeriesNotFoundError:
        return False
    try:
        parts = read_manifest(directory).parts
    except InvalidBarsError:
        parts = ()
    if parts == staged.parts(symbol):
        return True
    raise AlreadyExistsError(
        f"{symbol} {timeframe} is stored already, with other bars; append these to them, or replace them, by the mode "
        "of the import",
        metadata={"symbol": symbol, "timeframe": timeframe},
    )


def _limit_memory() -> None:
    """Let this process have a limited amount of memory more than it has: what a page of a file claims is not given."""
    import pyarrow as pa

    # The others reserve more than they use, which the limit would count.
    pa.set_memory_pool(pa.system_memory_pool())
    status = Path("/proc/self/status").read_text()
    used = next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmData:"))
    resource.setrlimit(resource.RLIMIT_DATA, (used + _MEMORY_BYTES, resource.RLIM_INFINITY))
