"""How an error is told: one sentence on stderr, with `--json` also an object on stdout."""

from __future__ import annotations

import sys

from ktrdr_client.cli import exit_codes
from ktrdr_core.errors import KtrdrError


def tell(text: str) -> None:
    """Write one sentence to stderr."""
    sys.stderr.write(f"ktrdr: {' '.join(text.split())}\n")


def write_json_error(error: KtrdrError) -> None:
    """Write the `error` line."""
    from ktrdr_client.cli.json_lines import line

    fields = {
        "reason": error.reason,
        "message": error.message,
        "exit_code": int(exit_codes.of_error(error)),
        "metadata": error.metadata,
        "violations": [
            {"field": each.field, "description": each.description} for each in getattr(error, "violations", ())
        ],
    }
    sys.stdout.write(line("error", fields) + "\n")
