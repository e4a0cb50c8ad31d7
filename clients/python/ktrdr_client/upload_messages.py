"""`python -m ktrdr_client.upload_messages DIR` prints the messages of an upload as JSON lines, for `grpcurl -d @`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from google.protobuf.json_format import MessageToJson

from ktrdr_core.errors import KtrdrError
from ktrdr_core.rpc.codec_choice import CodecChooser, Compression
from ktrdr_core.rpc.upload import UploadPlan, upload_messages


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the messages of one directory as JSON lines; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m ktrdr_client.upload_messages", description="Print the messages of an upload as JSON lines."
    )
    parser.add_argument("directory", metavar="MODEL_DIRECTORY", type=Path)
    parser.add_argument("training_id", metavar="TRAINING_ID", nargs="?", default="", help="without it an import")
    parser.add_argument("attempt", metavar="ATTEMPT", nargs="?", default=0, type=int)
    parser.add_argument("--compression", choices=list(Compression), default=Compression.AUTO, type=Compression)
    try:
        flags = parser.parse_args(arguments)
    except SystemExit as exit_:  # argparse has said what is wrong
        return int(exit_.code or 0)
    try:
        plan = UploadPlan.of(flags.directory, training_id=flags.training_id, attempt=flags.attempt)
        for message in upload_messages(plan, chooser=CodecChooser(flags.compression)):
            sys.stdout.write(MessageToJson(message, indent=None) + "\n")
    except KtrdrError as error:
        sys.stderr.write(f"upload_messages: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
