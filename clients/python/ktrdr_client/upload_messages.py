"""`python -m ktrdr_client.upload_messages DIR` prints the messages of an upload as JSON lines, for `grpcurl -d @`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from google.protobuf.json_format import MessageToJson

from ktrdr_core.errors import KtrdrError
from ktrdr_core.rpc.upload import UploadPlan, upload_messages


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the messages of one directory as JSON lines; returns the exit code."""
    values = list(sys.argv[1:] if arguments is None else arguments)
    if len(values) not in (1, 3):
        sys.stderr.write("usage: python -m ktrdr_client.upload_messages MODEL_DIRECTORY [TRAINING_ID ATTEMPT]\n")
        return 2
    try:
        plan = UploadPlan.of(
            Path(values[0]),
            training_id=values[1] if len(values) == 3 else "",
            attempt=int(values[2]) if len(values) == 3 else 0,
        )
        for message in upload_messages(plan):
            sys.stdout.write(MessageToJson(message, indent=None) + "\n")
    except (KtrdrError, ValueError) as error:  # ValueError: an attempt that is no number
        sys.stderr.write(f"upload_messages: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
