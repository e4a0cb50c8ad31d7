"""`python -m backend_service`: flags, then the fork server, and only then grpc."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from ktrdr_core.execution.fork_server import is_training_available, start_fork_server


def parse_flags(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Return the settings that were given as flags, by name."""
    parser = argparse.ArgumentParser(
        prog="python -m backend_service",
        description="Serve trainings and models; every flag is also a variable: KTRDR_ and the word behind it.",
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("--host", help="address to listen on (127.0.0.1)")
    parser.add_argument("--port", type=int, help="port to listen on, 0 picks a free one (50051)")
    parser.add_argument("--advertise-address", help="host:port under which trainers reach this backend")
    parser.add_argument("--data-dir", help="directory of the state (~/.local/share/ktrdr)")
    parser.add_argument("--bars-dir", help="directory with the bars (data)")
    parser.add_argument("--strategies-dir", help="directory with the strategies (strategies)")
    parser.add_argument("--trainer", dest="trainers", action="append", help="host:port of a trainer, repeatable")
    parser.add_argument("--slots", type=int, help="trainings this machine runs at once, 0 for none (1)")
    parser.add_argument("--drain-s", type=float, help="time local trainings get to end after SIGTERM (10)")
    parser.add_argument("--database-url", help="operations database, postgresql://user@host/name (SQLite in data-dir)")
    parser.add_argument("--trainer-lost-s", type=float, help="silence after which a trainer is lost (10)")
    parser.add_argument("--exit-when-idle-s", type=float, help="end after this long without training and RPC")
    parser.add_argument("--tls-cert", dest="backend_tls_cert", help="certificate, PEM; serves TLS")
    parser.add_argument("--tls-key", dest="backend_tls_key", help="its private key, PEM")
    parser.add_argument("--tls-ca", dest="backend_tls_ca", help="CA, PEM, whose certificates callers must show")
    parser.add_argument("--token-file", dest="backend_token_file", help="table of the tokens that callers may have")
    parser.add_argument(
        "--peer-ca", dest="backend_peer_ca", help="CA, PEM, of the trainers it calls (that of --tls-ca)"
    )
    parser.add_argument(
        "--peer-token-file", dest="backend_peer_token_file", help="file with the token it calls trainers with"
    )
    parser.add_argument(
        "--insecure",
        dest="backend_insecure",
        action="store_true",
        help="let other machines in without TLS and tokens, on a trusted network",
    )
    parser.add_argument("--log-level", help="DEBUG, INFO, WARNING or ERROR (INFO)")
    parser.add_argument("--log-format", help="text or json (text)")
    return vars(parser.parse_args(arguments))


def main() -> int:
    """Serve until a signal; return the exit code."""
    flags = parse_flags()
    if is_training_available() is None and flags.get("slots") != 0:
        start_fork_server()
    from backend_service.app import run

    return run(flags)


if __name__ == "__main__":
    sys.exit(main())
