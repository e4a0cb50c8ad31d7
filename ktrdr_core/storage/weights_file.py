"""Reads what a safetensors file says of itself, with bounds, before anything else touches it.

```
8 bytes              size of the header, little-endian
header               {"__metadata__": {str: str}, NAME: {"dtype": "F32", "shape": [3, 2], "data_offsets": [0, 24]}, ...}
the rest             the tensors' bytes; every byte belongs to exactly one of them
```
The header is read by its schema and not as any JSON: 8 MiB of nested lists would become 200 MB of Python objects before
a general parser's result could be looked at. What is accepted here is accepted by the safetensors library; not the
other way round: unknown fields and dtypes nothing here can compute with are refused.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import BinaryIO, NoReturn, TypeVar

import numpy as np
from numpy.typing import NDArray

from ktrdr_core.errors import CorruptDataError

MAX_HEADER_BYTES = 8 << 20
MAX_TENSORS = 100_000
MAX_NAME_LENGTH = 1024
MAX_STRING_BYTES = 64 << 10
MAX_DIMENSIONS = 32
MAX_METADATA_ENTRIES = 1024

_SIZE_FIELD_BYTES = 8
_METADATA_KEY = "__metadata__"
_LARGEST = 2**63 - 1
_BLOCK_BYTES = 4 << 20
_ITEM_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1,
    "U64": 8, "U32": 4, "U16": 2, "U8": 1,
    "BOOL": 1,
}  # fmt: skip
# The same as np.isfinite, which converts each half-precision value first and knows no bfloat16.
_EXPONENT_OF_16_BITS = {"F16": 0x7C00, "BF16": 0x7F80}

_BLANKS = re.compile(rb"[ \t\n\r]*+")
_STRING = re.compile(rb'"([^"\\\x00-\x1f]*+(?:\\.[^"\\\x00-\x1f]*+)*+)"', re.DOTALL)
_NUMBER = re.compile(rb"(?:0|[1-9][0-9]{0,18})(?![0-9.eE])")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class WeightsTensor:
    """Where the values of one tensor are.

    Attributes:
        name: Its name.
        dtype: As safetensors writes it, for example "F32".
        shape: Its shape.
        offset: First byte, from the beginning of the file.
        size_bytes: Number of bytes.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class WeightsTable:
    """The tensors of a weights file in the order of their bytes, and the size of the file."""

    tensors: tuple[WeightsTensor, ...]
    size_bytes: int


def check_weights(
    path: Path, *, max_header_bytes: int = MAX_HEADER_BYTES, max_tensors: int = MAX_TENSORS
) -> WeightsTable:
    """Return what the weights file at `path` holds; of its data nothing is read.

    Args:
        path: The file.
        max_header_bytes: Size of the largest header that is read.
        max_tensors: Number of tensors at most.

    Raises:
        CorruptDataError: It is no safetensors file, its tensors do not cover it exactly, or a bound is passed.
        OSError: It cannot be read.
    """
    with path.open("rb") as file:
        file_size = file.seek(0, 2)
        file.seek(0)
        try:
            header = _read_header(file, file_size, max_header_bytes)
            return _build_table(_Header(header, max_tensors).tensors(), _SIZE_FIELD_BYTES + len(header), file_size)
        except _UnsoundError as error:
            raise CorruptDataError(f"{path} is no sound weights file: {error}; bring or train it again") from error


def check_finite(path: Path, table: WeightsTable) -> None:
    """Raise unless every floating-point value of the file at `path` is finite; a few MiB are in memory at a time.

    Args:
        path: The file.
        table: What `check_weights` answered for it.

    Raises:
        CorruptDataError: A value is NaN or infinite, or the file has changed.
        OSError: It cannot be read.
    """
    with path.open("rb", buffering=0) as file:
        tensors = [tensor for tensor in table.tensors if tensor.dtype in ("F64", "F32", *_EXPONENT_OF_16_BITS)]
        largest = max((tensor.size_bytes for tensor in tensors), default=0)
        block = np.empty(min(_BLOCK_BYTES, largest), dtype=np.uint8)
        for tensor in tensors:
            file.seek(tensor.offset)
            for begin in range(0, tensor.size_bytes, _BLOCK_BYTES):
                piece = block[: min(_BLOCK_BYTES, tensor.size_bytes - begin)]
                if _read_into(file, piece) < len(piece):
                    raise CorruptDataError(f"{path} ends within {tensor.name!r}: it was changed; bring it again")
                if not _is_finite(piece, tensor.dtype):
                    raise CorruptDataError(
                        f"{path}: {tensor.name!r} has values that are NaN or infinite; train it again"
                    )


class _UnsoundError(Exception):
    """What is wrong with a file, without its name."""


def _read_header(file: BinaryIO, file_size: int, max_header_bytes: int) -> bytes:
    if file_size < _SIZE_FIELD_BYTES:
        raise _UnsoundError(f"it must have at least {_SIZE_FIELD_BYTES} bytes, has {file_size}")
    (size,) = struct.unpack("<Q", file.read(_SIZE_FIELD_BYTES))
    if size > max_header_bytes:
        raise _UnsoundError(f"its header must have at most {max_header_bytes} bytes, declares {size}")
    header = file.read(size)
    if len(header) < size:
        raise _UnsoundError(f"its header declares {size} bytes, the file ends after {len(header)}")
    return header


def _build_table(tensors: list[WeightsTensor], data_offset: int, file_size: int) -> WeightsTable:
    """Return the table, with offsets from the beginning of the file, if the tensors cover the data exactly."""
    end = 0
    placed = []
    for tensor in sorted(tensors, key=lambda tensor: (tensor.offset, tensor.size_bytes)):
        if tensor.offset != end:
            what = "overlaps the tensor before it" if tensor.offset < end else "leaves a gap before it"
            raise _UnsoundError(f"{tensor.name!r} begins at byte {tensor.offset} of the data and {what}, to {end}")
        end += tensor.size_bytes
        placed.append(
            WeightsTensor(tensor.name, tensor.dtype, tensor.shape, data_offset + tensor.offset, tensor.size_bytes)
        )
    if data_offset + end != file_size:
        raise _UnsoundError(f"its tensors end at byte {data_offset + end}, the file at {file_size}")
    return WeightsTable(tuple(placed), file_size)


class _Header:
    """Reads one header from left to right; the offsets of its tensors count from the beginning of the data."""

    def __init__(self, text: bytes, max_tensors: int) -> None:
        self._text = text
        self._at = 0
        self._max_tensors = max_tensors

    def tensors(self) -> list[WeightsTensor]:
        found: dict[str, WeightsTensor] = {}
        has_metadata = False
        if not self._text.startswith(b"{"):
            self._refuse("'{'")
        for name in self._members():
            if name in found or (name == _METADATA_KEY and has_metadata):
                raise _UnsoundError(f"its header names {name!r} twice")
            if name == _METADATA_KEY:
                has_metadata = True
                self._skip_metadata()
                continue
            if len(found) == self._max_tensors:
                raise _UnsoundError(f"it must have at most {self._max_tensors} tensors, has more")
            found[name] = self._tensor(name)
        if self._peek():
            self._refuse("the end of the header")
        return list(found.values())

    def _skip_metadata(self) -> None:
        keys: set[str] = set()
        for key in self._members():
            self._string()
            if key in keys:
                raise _UnsoundError(f"its {_METADATA_KEY} names {key!r} twice")
            keys.add(key)
            if len(keys) > MAX_METADATA_ENTRIES:
                raise _UnsoundError(f"its {_METADATA_KEY} must have at most {MAX_METADATA_ENTRIES} entries, has more")

    def _tensor(self, name: str) -> WeightsTensor:
        dtype: str | None = None
        shape: list[int] | None = None
        offsets: list[int] | None = None
        for key in self._members():
            if key == "dtype" and dtype is None:
                dtype = self._string()
            elif key == "shape" and shape is None:
                shape = self._numbers(MAX_DIMENSIONS)
            elif key == "data_offsets" and offsets is None:
                offsets = self._numbers(2)
            else:
                raise _UnsoundError(f"{name!r} must have dtype, shape and data_offsets once each, has {key!r}")
        if dtype is None or shape is None or offsets is None or len(offsets) != 2:
            raise _UnsoundError(f"{name!r} must have dtype, shape and two data_offsets, has not")
        if dtype not in _ITEM_BYTES:
            raise _UnsoundError(f"dtype of {name!r} must be one of {', '.join(_ITEM_BYTES)}, was {dtype[:20]!r}")
        # Zeros do not excuse the other dimensions: their product is computed by whoever reads the file.
        if math.prod(size or 1 for size in shape) * _ITEM_BYTES[dtype] > _LARGEST:
            raise _UnsoundError(f"{name!r} must have at most {_LARGEST} bytes, has shape {shape}")
        size_bytes = math.prod(shape) * _ITEM_BYTES[dtype]
        begin, end = offsets
        if end - begin != size_bytes:
            raise _UnsoundError(f"{name!r} has {size_bytes} bytes by its shape, data_offsets give {end - begin}")
        return WeightsTensor(name, dtype, tuple(shape), begin, size_bytes)

    def _members(self) -> Iterator[str]:
        """Yield the keys of an object; whoever iterates reads each value."""
        yield from self._separated(b"{", b"}", self._key)

    def _numbers(self, limit: int) -> list[int]:
        numbers: list[int] = []
        for number in self._separated(b"[", b"]", self._number):
            if len(numbers) == limit:
                raise _UnsoundError(f"a list in its header must have at most {limit} numbers, has more")
            numbers.append(number)
        return numbers

    def _separated(self, opening: bytes, closing: bytes, read: Callable[[], T]) -> Iterator[T]:
        self._take(opening)
        if self._peek() == closing:
            self._take(closing)
            return
        while True:
            yield read()
            if self._peek() == closing:
                self._take(closing)
                return
            self._take(b",")

    def _key(self) -> str:
        key = self._string()
        if len(key) > MAX_NAME_LENGTH:
            raise _UnsoundError(f"a name in its header must have at most {MAX_NAME_LENGTH} characters, has {len(key)}")
        self._take(b":")
        return key

    def _string(self) -> str:
        found = self._match(_STRING, "a string")
        if (size := found.end() - found.start()) > MAX_STRING_BYTES:
            raise _UnsoundError(f"a string in its header must have at most {MAX_STRING_BYTES} bytes, has {size}")
        try:
            text = found[1].decode()
            if "\\" in text:
                text = str(json.loads(f'"{text}"'))
                text.encode()  # refuses half a surrogate pair
        except ValueError as error:
            raise _UnsoundError(f"its header has a string that is no text, at byte {found.start()}") from error
        return text

    def _number(self) -> int:
        number = int(self._match(_NUMBER, "a whole number from 0")[0])
        if number > _LARGEST:
            raise _UnsoundError(f"a number in its header must be at most {_LARGEST}, was {number}")
        return number

    def _match(self, pattern: re.Pattern[bytes], what: str) -> re.Match[bytes]:
        self._peek()
        found = pattern.match(self._text, self._at)
        if found is None:
            self._refuse(what)
        self._at = found.end()
        return found

    def _take(self, token: bytes) -> None:
        if self._peek() != token:
            self._refuse(f"'{token.decode()}'")
        self._at += 1

    def _peek(self) -> bytes:
        """Skip blanks and return the byte that follows; empty at the end."""
        blanks = _BLANKS.match(self._text, self._at)
        if blanks is not None:
            self._at = blanks.end()
        return self._text[self._at : self._at + 1]

    def _refuse(self, what: str) -> NoReturn:
        raise _UnsoundError(f"its header must have {what} at byte {self._at}, has {self._text[self._at :][:12]!r}")


def _is_finite(block: NDArray[np.uint8], dtype: str) -> bool:
    if dtype in _EXPONENT_OF_16_BITS:
        exponent = np.uint16(_EXPONENT_OF_16_BITS[dtype])
        return not ((block.view("<u2") & exponent) == exponent).any()
    return bool(np.isfinite(block.view("<f8" if dtype == "F64" else "<f4")).all())


def _read_into(file: FileIO, block: NDArray[np.uint8]) -> int:
    """Fill `block` as far as the file goes; return how many bytes that was."""
    view = memoryview(block.data)
    done = 0
    while done < len(view) and (count := file.readinto(view[done:])):
        done += count
    return done
