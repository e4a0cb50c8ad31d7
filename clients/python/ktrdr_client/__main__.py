"""The `ktrdr` command."""

from __future__ import annotations

import os
import sys


def main() -> int:
    """Run the command line and return the exit code."""
    # Else gRPC's core writes a line of its own to the terminal when a service goes away; it reads this as it loads.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")

    from ktrdr_client.cli.run import run

    return run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
