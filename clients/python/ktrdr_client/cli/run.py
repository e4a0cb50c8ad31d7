"""One invocation of `ktrdr`: its commands, and what becomes of every error."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import typer

from ktrdr_client.cli import exit_codes
from ktrdr_client.cli.app import app
from ktrdr_client.cli.errors import tell, write_json_error
from ktrdr_client.cli.exit_codes import ExitCode
from ktrdr_core.errors import InternalError, InvalidInputError, KtrdrError

_GLOBAL_OPTIONS = (
    *("--backend", "--data-dir", "--tls-ca", "--tls-cert", "--tls-key", "--token-file"),
    *("--debug", "--version"),
)
# typer carries a click of its own since 0.20; its errors are found through a class both have.
_UsageError: Any = next(cls for cls in typer.BadParameter.__mro__ if cls.__name__ == "UsageError")
_AnyClickError: Any = next(cls for cls in typer.BadParameter.__mro__ if cls.__name__ == "ClickException")


def run(arguments: Sequence[str]) -> int:
    """Run one invocation; every error becomes one sentence on stderr and an exit code."""
    is_debug = "--debug" in arguments
    try:
        return int(app(args=list(arguments), prog_name="ktrdr", standalone_mode=False) or 0)
    except _AnyClickError as error:
        return _usage_error(error, arguments)
    except KtrdrError as error:
        if is_debug:
            raise
        text = error.message
        if isinstance(error, InternalError):
            text += "; run again with --debug and look into the service's log"
        tell(text)
        if "--json" in arguments:
            write_json_error(error)
        return exit_codes.of_error(error)
    except (KeyboardInterrupt, typer.Abort):
        tell("interrupted")
        return ExitCode.INTERRUPTED
    except BrokenPipeError:
        # The reader of our output has gone (`ktrdr list | head`): nothing is left to say.
        sys.stderr.close()
        return ExitCode.OK
    except Exception as error:  # the edge: a defect is one sentence for people, a traceback with --debug
        if is_debug:
            raise
        tell(f"unexpected {type(error).__name__}: {error}; run again with --debug and report it")
        return ExitCode.FAILED


def _usage_error(error: Any, arguments: Sequence[str]) -> int:
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
        return ExitCode.BAD_INPUT
    from ktrdr_client.cli.usage import usage_sentence

    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "ktrdr"
    text = usage_sentence(error.format_message(), arguments)
    misplaced = next((option for option in _GLOBAL_OPTIONS if option in text and "No such option" in text), None)
    if misplaced and path != "ktrdr":
        text = f"{misplaced} goes before the command: ktrdr {misplaced} ... {path.removeprefix('ktrdr ')}"
    else:
        text = f"{text}; see {path} --help"
    tell(text)
    if "--json" in arguments:
        write_json_error(InvalidInputError(text))
    return ExitCode.BAD_INPUT
