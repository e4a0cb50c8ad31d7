"""The parser of weights files: whatever it accepts, the safetensors library reads the same way."""

from __future__ import annotations

import json
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as numpy_st
from safetensors.numpy import save as render_safetensors

from ktrdr_core.errors import CorruptDataError
from ktrdr_core.storage.weights_file import (
    MAX_DIMENSIONS,
    MAX_HEADER_BYTES,
    MAX_METADATA_ENTRIES,
    MAX_NAME_LENGTH,
    MAX_STRING_BYTES,
    WeightsTable,
    check_finite,
    check_weights,
)

A_TENSOR = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
_DTYPES = ("f8", "f4", "f2", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "?")


def render(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def checked(path: Path, content: bytes, **bounds: int) -> WeightsTable:
    path.write_bytes(content)
    return check_weights(path, **bounds)


def refusal(path: Path, content: bytes, **bounds: int) -> str:
    with pytest.raises(CorruptDataError) as caught:
        checked(path, content, **bounds)
    return caught.value.message


def library_reads(content: bytes) -> dict[str, tuple[list[int], bytes]] | None:
    """Return shape and bytes by name as the library reads them; None if it refuses."""
    try:
        found = safetensors.deserialize(content)  # type: ignore[no-untyped-call]
    except safetensors.SafetensorError:
        return None
    return {name: (each["shape"], bytes(each["data"])) for name, each in found}


def we_read(path: Path, content: bytes) -> dict[str, tuple[list[int], bytes]] | None:
    try:
        table = checked(path, content)
    except CorruptDataError:
        return None
    return {
        tensor.name: (list(tensor.shape), content[tensor.offset : tensor.offset + tensor.size_bytes])
        for tensor in table.tensors
    }


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("weights") / "model.safetensors"


names = st.text(st.characters(exclude_categories=["Cs"]), max_size=20).filter(lambda name: name != "__metadata__")
arrays = st.sampled_from(_DTYPES).flatmap(
    lambda dtype: numpy_st.arrays(np.dtype(dtype), numpy_st.array_shapes(min_dims=0, max_side=4, min_side=0))
)
# At least one tensor: of none, with metadata, the library itself writes what it cannot read.
files = st.builds(
    render_safetensors,
    st.dictionaries(names, arrays, min_size=1, max_size=5),
    st.none() | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=9), names, max_size=3),
)


@given(content=files)
def test_file_of_the_library_is_read_as_the_library_reads_it(path: Path, content: bytes) -> None:
    assert we_read(path, content) == library_reads(content) is not None


@given(content=files, data=st.data())
def test_changed_file_is_never_accepted_where_the_library_refuses(path: Path, content: bytes, data: Any) -> None:
    changed = bytearray(content)
    header_end = 8 + struct.unpack("<Q", content[:8])[0]
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, header_end))
        cut = data.draw(st.integers(0, 3))
        changed[at : at + cut] = data.draw(st.binary(max_size=3) | st.sampled_from([b"0", b"]", b'"', b",", b"-0"]))
    if (ours := we_read(path, bytes(changed))) is not None:
        assert ours == library_reads(bytes(changed))


numbers = st.integers(0, 9) | st.sampled_from([-1, 2**31, 2**62, 2**63, 2**64, 10**30, 1.0, 1e300, True, None, "1"])
values: Any = st.lists(numbers, max_size=4) | numbers | st.sampled_from(["F32", "F4", "BOOL", "I64", "U8", {}, [[]]])
near_tensors = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F32", "U8", "BF16", "F8_E4M3", "f32"]) | values,
        "shape": st.lists(st.integers(0, 3), max_size=3) | values,
        "data_offsets": st.tuples(st.integers(0, 9), st.integers(0, 24)) | values,
        "more": values,
    },
)
near_headers = st.dictionaries(
    names | st.just("__metadata__"), near_tensors | st.dictionaries(names, names | values), max_size=3
)


@given(header=near_headers, data=st.binary(max_size=32))
def test_hostile_header_is_never_accepted_where_the_library_refuses(path: Path, header: Any, data: bytes) -> None:
    content = render(header, data)
    if (ours := we_read(path, content)) is not None:
        assert ours == library_reads(content)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "at least 8 bytes"),
        (b"\0" * 7, "at least 8 bytes"),
        (struct.pack("<Q", 2**64 - 1), "declares 18446744073709551615"),
        (struct.pack("<Q", MAX_HEADER_BYTES + 1), f"at most {MAX_HEADER_BYTES} bytes"),
        (struct.pack("<Q", 100) + b"{}", "the file ends after 2"),
        (render(b""), "'{' at byte 0"),
        (render(b" {}"), "'{' at byte 0"),
        (render(b"[]"), "'{' at byte 0"),
        (render(b"{} x"), "the end of the header"),
        (render(b'{"a":'), "'{' at byte 5"),
        (render({"a": A_TENSOR}, b"0" * 7), "the file at"),
        (render({"a": A_TENSOR}, b"0" * 9), "the file at"),
        (render({"a": A_TENSOR | {"shape": [3]}}, b"0" * 8), "12 bytes by its shape"),
        (render({"a": A_TENSOR | {"data_offsets": [8, 0]}}, b"0" * 8), "data_offsets give -8"),
        (render({"a": A_TENSOR | {"data_offsets": [0, 9]}}, b"0" * 8), "data_offsets give 9"),
        (render({"a": A_TENSOR | {"data_offsets": [0, 8, 8]}}, b"0" * 8), "at most 2 numbers"),
        (render({"a": A_TENSOR | {"data_offsets": [8]}}, b"0" * 8), "two data_offsets"),
        (render({"a": {"dtype": "F32"}}), "has not"),
        (render({"a": A_TENSOR | {"dtype": "F33"}}, b"0" * 8), "dtype of 'a'"),
        (render({"a": A_TENSOR | {"dtype": 4}}, b"0" * 8), "a string"),
        (render({"a": A_TENSOR | {"shape": [2.0]}}, b"0" * 8), "a whole number"),
        (render({"a": A_TENSOR | {"shape": [-2]}}, b"0" * 8), "a whole number"),
        (render({"a": A_TENSOR | {"shape": [True, 2]}}, b"0" * 8), "a whole number"),
        (render(b'{"a":{"dtype":"F32","shape":[02],"data_offsets":[0,8]}}', b"0" * 8), "a whole number"),
        (render(b'{"a":{"dtype":"U8","shape":[-0],"data_offsets":[0,0]}}'), "a whole number"),
        (render({"a": A_TENSOR | {"shape": [float("nan")]}}, b"0" * 8), "a whole number"),
        (render({"a": A_TENSOR | {"shape": [2**63]}}, b"0" * 8), f"at most {2**63 - 1}"),
        (render({"a": A_TENSOR | {"shape": [2**62, 2**62, 0], "data_offsets": [0, 0]}}), "at most"),
        (render({"a": A_TENSOR | {"shape": [1] * (MAX_DIMENSIONS + 1)}}, b"0" * 8), f"at most {MAX_DIMENSIONS}"),
        (render({"a": A_TENSOR | {"strides": [1]}}, b"0" * 8), "has 'strides'"),
        (render(b'{"a":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}}', b"0" * 8), "has 'dtype'"),
        (render({"a": A_TENSOR, "b": A_TENSOR}, b"0" * 8), "overlaps"),
        (render({"a": A_TENSOR, "b": A_TENSOR | {"data_offsets": [9, 17]}}, b"0" * 17), "gap"),
        (render(b'{"a":%b,"a":%b}' % ((json.dumps(A_TENSOR).encode(),) * 2), b"0" * 8), "names 'a' twice"),
        (render(b'{"\\u0061":%b,"a":%b}' % ((json.dumps(A_TENSOR).encode(),) * 2), b"0" * 8), "names 'a' twice"),
        (render(b'{"__metadata__":{},"__metadata__":{}}'), "names '__metadata__' twice"),
        (render(b'{"__metadata__":{"a":"b","a":"b"}}'), "names 'a' twice"),
        (render({"__metadata__": {"a": 1}}), "a string"),
        (render({"__metadata__": None}), "'{'"),
        (render({"__metadata__": {f"{n}": "" for n in range(MAX_METADATA_ENTRIES + 1)}}), "entries"),
        (render({"a" * (MAX_NAME_LENGTH + 1): A_TENSOR}, b"0" * 8), f"at most {MAX_NAME_LENGTH} characters"),
        (render({"__metadata__": {"a": "b" * MAX_STRING_BYTES}}), f"at most {MAX_STRING_BYTES} bytes"),
        (render(b'{"\xff":1}'), "no text"),
        (render(b'{"\\ud800":1}'), "no text"),
        (render(b'{"\\x41":1}'), "no text"),
        (render(b'{"\n":1}'), "a string"),
        (render(b'{"a'), "a string"),
    ],
)
def test_unsound_file_is_refused_with_the_rule_it_breaks(path: Path, content: bytes, told: str) -> None:
    message = refusal(path, content)
    assert told in message
    assert str(path) in message
    assert len(message) < 400


def test_bounds_are_the_callers(path: Path) -> None:
    content = render({"a": A_TENSOR, "b": A_TENSOR | {"data_offsets": [8, 16]}}, b"0" * 16)
    header_size = len(content) - 24
    assert len(checked(path, content, max_tensors=2, max_header_bytes=header_size).tensors) == 2
    assert "at most 1 tensors" in refusal(path, content, max_tensors=1)
    assert "declares" in refusal(path, content, max_header_bytes=header_size - 1)


def test_tensors_are_answered_in_the_order_of_their_bytes(path: Path) -> None:
    content = render({"b": A_TENSOR | {"data_offsets": [8, 16]}, "a": A_TENSOR}, b"0" * 16)
    tensors = checked(path, content).tensors
    assert [(tensor.name, tensor.offset) for tensor in tensors] == [("a", len(content) - 16), ("b", len(content) - 8)]


@pytest.mark.parametrize(
    "text",
    [
        b"[" * MAX_HEADER_BYTES,
        b'{"a":' * (MAX_HEADER_BYTES // 5),
        b'{"a":{"shape":[' + b"[]," * (MAX_HEADER_BYTES // 3 - 9),
        b'{"a":{"shape":[' + b"1234," * (MAX_HEADER_BYTES // 5 - 9),
        b'{"a":{"shape":[' + b"9" * (MAX_HEADER_BYTES - 20),
        b'{"' + b"a" * (MAX_HEADER_BYTES - 2),
        b'{"' + b"\\n" * (MAX_HEADER_BYTES // 2 - 2) + b'":',
        b"{" + b" " * (MAX_HEADER_BYTES - 2),
        b'{"__metadata__":{' + b",".join(b'"%d":""' % n for n in range(MAX_HEADER_BYTES // 12)),
    ],
    ids=["lists", "objects", "list of lists", "numbers", "digits", "long name", "escapes", "blanks", "metadata"],
)
def test_largest_hostile_header_takes_little_memory(path: Path, text: bytes) -> None:
    path.write_bytes(render(text))
    tracemalloc.start()
    try:
        with pytest.raises(CorruptDataError):
            check_weights(path)
        assert tracemalloc.get_traced_memory()[1] < 3 * MAX_HEADER_BYTES
    finally:
        tracemalloc.stop()


def _one_tensor(dtype: str, values: np.ndarray[Any, Any]) -> bytes:
    entry = {"dtype": dtype, "shape": [len(values)], "data_offsets": [0, values.nbytes]}
    before = {"dtype": "I64", "shape": [1], "data_offsets": [values.nbytes, values.nbytes + 8]}
    return render({"integer": before, "values": entry}, values.tobytes() + b"\xff" * 8)


@pytest.mark.parametrize(
    ("dtype", "bits", "largest", "unsound"),
    [
        ("F64", "<u8", 0x7FEF_FFFF_FFFF_FFFF, [0x7FF0_0000_0000_0000, 0xFFF0_0000_0000_0000, 0x7FF8_0000_0000_0001]),
        ("F32", "<u4", 0x7F7F_FFFF, [0x7F80_0000, 0xFF80_0000, 0x7FC0_0001]),
        ("F16", "<u2", 0x7BFF, [0x7C00, 0xFC00, 0x7E01]),
        ("BF16", "<u2", 0x7F7F, [0x7F80, 0xFF80, 0x7FC1]),
    ],
)
def test_values_that_are_not_finite_are_found_wherever_they_are(
    path: Path, dtype: str, bits: str, largest: int, unsound: list[int]
) -> None:
    count = (5 << 20) // np.dtype(bits).itemsize  # more than one block
    values = np.full(count, largest, dtype=bits)
    table = checked(path, _one_tensor(dtype, values))
    check_finite(path, table)
    for value in unsound:
        for position in (0, count // 2, count - 1):
            values[position] = value
            path.write_bytes(_one_tensor(dtype, values))
            with pytest.raises(CorruptDataError, match="'values' has values that are NaN or infinite"):
                check_finite(path, table)
            values[position] = largest


def test_finite_check_holds_a_few_blocks_in_memory(path: Path) -> None:
    table = checked(path, _one_tensor("F32", np.zeros(8 << 20, dtype=np.float32)))
    tracemalloc.start()
    try:
        check_finite(path, table)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_file_that_became_shorter_is_noticed(path: Path) -> None:
    content = _one_tensor("F32", np.zeros(9, dtype=np.float32))
    table = checked(path, content)
    path.write_bytes(content[:-20])
    with pytest.raises(CorruptDataError, match="ends within 'values'"):
        check_finite(path, table)
