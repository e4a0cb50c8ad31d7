"""Arrow columns as NumPy arrays. Arrow's own conversion loads pandas, half a second of every start."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def to_numpy(column: Any) -> NDArray[Any]:
    """Return a column of numbers without nulls, without a copy where it is one chunk.

    Args:
        column: Arrow array or chunked array of integers or floats.

    Returns:
        Shape (T,), dtype of the column; may be read-only.
    """
    import pyarrow as pa

    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if not len(column):
        return np.empty(0, dtype=column.type.to_pandas_dtype())
    return np.asarray(np.from_dlpack(column))


def null_rows(column: Any) -> NDArray[np.int64]:
    """Return the indices of a column's nulls, ascending."""
    import pyarrow.compute as pc

    if not column.null_count:
        return np.empty(0, dtype=np.int64)
    return to_numpy(pc.indices_nonzero(pc.is_null(column))).astype(np.int64)
