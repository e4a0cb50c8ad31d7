"""From what a person types to the training or trainer that is meant."""

from __future__ import annotations

from collections.abc import Sequence

from ktrdr_client.async_client import AsyncClient
from ktrdr_client.types import Training
from ktrdr_core.errors import InvalidInputError, TrainingNotFoundError

_FULL_ID_LENGTH = 32
_MIN_PREFIX_LENGTH = 3


async def find_training(client: AsyncClient, text: str) -> Training:
    """Return the training with this id, or the only one whose id begins so."""
    try:
        return await client.get_training(text)
    except TrainingNotFoundError:
        if not _may_be_prefix(text):
            raise
        return _only_one(text, await client.list_trainings())


async def find_training_ids(client: AsyncClient, texts: Sequence[str]) -> dict[str, str | TrainingNotFoundError]:
    """Return the id that each text means; ids in full are taken as they are, without asking.

    Raises:
        InvalidInputError: A text means several trainings.
    """
    all_trainings = await client.list_trainings() if any(map(_may_be_prefix, texts)) else []
    found: dict[str, str | TrainingNotFoundError] = {}
    for text in texts:
        try:
            found[text] = _only_one(text, all_trainings).training_id if _may_be_prefix(text) else text
        except TrainingNotFoundError as error:
            found[text] = error
    return found


async def find_trainer(client: AsyncClient, text: str) -> str:
    """Return the identity whose only beginning `text` is, else `text`: an address, or what the backend will refuse."""
    if len(text) < _MIN_PREFIX_LENGTH:
        return text
    trainers = await client.list_trainers()
    if any(text in (trainer.address, trainer.trainer_id) for trainer in trainers):
        return text
    matches = {trainer.trainer_id for trainer in trainers if trainer.trainer_id.startswith(text)}
    if len(matches) > 1:
        raise InvalidInputError(
            f"{len(matches)} trainers have ids that begin with {text!r}; give more", field="trainer"
        )
    return matches.pop() if matches else text


def _may_be_prefix(text: str) -> bool:
    return _MIN_PREFIX_LENGTH <= len(text) < _FULL_ID_LENGTH


def _only_one(text: str, trainings: Sequence[Training]) -> Training:
    # A whole id wins, also over longer ones that begin with it.
    matches = [each for each in trainings if each.training_id == text] or [
        each for each in trainings if each.training_id.startswith(text)
    ]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise InvalidInputError(f"{len(matches)} trainings begin with {text!r}; give more of the id", field="id")
    raise TrainingNotFoundError(f"no training {text}; `ktrdr list` shows those there are")
