"""The files that a stored model can be exported as."""

from __future__ import annotations

from enum import StrEnum


class ExportFormat(StrEnum):
    """PT: weights, as a torch state dict. FULL: architecture and preprocessing as well. ONNX: a graph that predicts."""

    PT = "pt"
    FULL = "full"
    ONNX = "onnx"

    @property
    def suffix(self) -> str:
        """How the name of such a file ends."""
        return "_full.pt" if self is ExportFormat.FULL else f".{self.value}"
