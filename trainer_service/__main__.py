"""`python -m trainer_service`: free of grpc until the fork server runs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from ktrdr_core.execution.fork_server import start_fork_server


def parse_flags(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Return the settings that were given as flags, by name."""
    parser = argparse.ArgumentParser(
        prog="python -m trainer_service",
        description="Serve the TrainerService: run training sessions in worker processes of this machine.",
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("--host", help="address to listen on (127.0.0.1)")
    parser.add_argument("--port", type=int, help="port to listen on, 0 picks a free one (50052)")
    parser.add_argument("--data-dir", help="directory of the state (~/.local/share/ktrdr)")
    parser.add_argument("--bars-dir", help="directory with bars of this machine, for data mode local (data)")
    parser.add_argument("--bar-cache-bytes", type=int, help="how much of the backends' bars is kept (4 GiB)")
    parser.add_argument("--slots", type=int, help="sessions that run at once (1)")
    parser.add_argument(
        "--backend", dest="backends", metavar="HOST:PORT,...", help="backends to announce this trainer to (none)"
    )
    parser.add_argument(
        "--advertise-address", metavar="HOST:PORT", help="where backends reach this trainer (where it listens)"
    )
    parser.add_argument(
        "--checkpoint-every-s", type=float, help="how often a session saves what a next attempt goes on from (10)"
    )
    parser.add_argument("--drain-timeout-s", type=float, help="how long SIGTERM lets running sessions go on (10)")
    parser.add_argument("--tls-cert", help="certificate, PEM; serves TLS")
    parser.add_argument("--tls-key", help="its private key, PEM")
    parser.add_argument("--tls-ca", help="CA, PEM, whose certificates callers must show")
    parser.add_argument("--token-file", help="table of the tokens that callers may have")
    parser.add_argument("--peer-ca", help="CA, PEM, of the backends it calls (that of --tls-ca)")
    parser.add_argument("--peer-token-file", help="file with the token it calls backends with")
    parser.add_argument(
        "--insecure", action="store_true", help="let other machines in without TLS and tokens, on a trusted network"
    )
    parser.add_argument("--compression", help="of models on their way to a backend: auto, none, zstd or gzip (auto)")
    parser.add_argument("--log-level", help="DEBUG, INFO, WARNING or ERROR (INFO)")
    parser.add_argument("--log-format", help="text or json (text)")
    return vars(parser.parse_args(arguments))


def main() -> int:
    """Serve until a signal; returns the exit code."""
    flags = parse_flags()
    start_fork_server()
    from trainer_service.app import run

    return run(flags)


if __name__ == "__main__":
    sys.exit(main())
