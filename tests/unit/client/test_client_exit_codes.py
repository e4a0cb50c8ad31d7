import pytest
from ktrdr_client.cli import exit_codes
from ktrdr_client.cli.exit_codes import ExitCode

from ktrdr_core.domain.states import TrainingState
from ktrdr_core.errors import CancellationError, KtrdrError, TrainingError, UnavailableError, error_classes


@pytest.mark.parametrize(
    ("state", "code"),
    [
        (TrainingState.COMPLETED, 0),
        (TrainingState.FAILED, 3),
        (TrainingState.CANCELLED, 4),
        (TrainingState.STOPPED, 4),
        (TrainingState.QUEUED, 0),
        (TrainingState.RUNNING, 0),
    ],
)
def test_state_has_its_documented_code(state: TrainingState, code: int) -> None:
    assert exit_codes.of_state(state) == code


@pytest.mark.parametrize("cls", error_classes().values(), ids=lambda cls: cls.__name__)
def test_every_error_class_has_a_code_that_is_not_ok(cls: type[KtrdrError]) -> None:
    code = int(exit_codes.of_error(cls("what happened")))
    assert code in (ExitCode.BAD_INPUT, ExitCode.FAILED, ExitCode.CANCELLED, ExitCode.UNREACHABLE)
    if issubclass(cls, ValueError):
        assert code == 2
    if issubclass(cls, UnavailableError):
        assert code == 5
    if issubclass(cls, TrainingError):
        assert code == 3
    if issubclass(cls, CancellationError):
        assert code == 4
