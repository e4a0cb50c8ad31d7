"""Inputs for hypothesis: any bytes, and seeds that were cut, joined and changed."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import strategies as st

_TOKENS = (b"\0", b"\xff", b"\x7f", b"-1", b"..", b"/", b'"', b"[", b"{", b"null", b"1e999", b"\xff" * 8, b"\0" * 16)


@st.composite
def mutated(draw: st.DrawFn, seeds: Sequence[bytes]) -> bytes:
    """Return a seed with one to six pieces replaced, removed, repeated or taken from another seed."""
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 6))):
        begin = draw(st.integers(0, len(data)))
        end = min(len(data), begin + draw(st.integers(0, 4) | st.integers(0, 64)))
        match draw(st.sampled_from(("bits", "bytes", "token", "remove", "repeat", "other", "cut"))):
            case "bits" if begin < len(data):
                data[begin] ^= 1 << draw(st.integers(0, 7))
            case "bytes":
                data[begin:end] = draw(st.binary(max_size=8))
            case "token":
                data[begin:end] = draw(st.sampled_from(_TOKENS))
            case "remove":
                del data[begin:end]
            case "repeat":
                data[end:end] = data[begin:end] * draw(st.integers(1, 3))
            case "other":
                other = draw(st.sampled_from(seeds))
                at = draw(st.integers(0, len(other)))
                data[begin:end] = other[at : at + draw(st.integers(0, 64))]
            case "cut":
                del data[begin:]
    return bytes(data)


def hostile(seeds: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    return st.sampled_from(seeds) | mutated(seeds) | mutated(seeds) | st.binary(max_size=512)
