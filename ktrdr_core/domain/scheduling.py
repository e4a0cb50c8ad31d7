"""How a training is treated beside others: whose it is, how urgent, what becomes of it when its trainer is lost."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from enum import StrEnum

from ktrdr_core.errors import InvalidSpecError

MAX_PRIORITY = 100
MAX_RETRIES = 100
DEFAULT_RETRIES = 5
_USER = re.compile(r"[A-Za-z0-9._@-]{0,64}")


class RetryMode(StrEnum):
    """When a training gets another attempt."""

    NEVER = "never"
    ON_INFRASTRUCTURE_FAILURE = "on_infrastructure_failure"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheduling:
    """What a training asks of the queue; it never changes what is trained.

    Attributes:
        user: Whose training it is, for the fair share; trainings without one share "".
        priority: -100 to 100; a higher one goes first.
        retry: When another attempt follows a lost one.
        max_retries: Attempts beyond the first, 0 to 100.
    """

    user: str = ""
    priority: int = 0
    retry: RetryMode = RetryMode.ON_INFRASTRUCTURE_FAILURE
    max_retries: int = DEFAULT_RETRIES

    def __post_init__(self) -> None:
        if not _USER.fullmatch(self.user):
            raise InvalidSpecError(
                f"user must be at most 64 letters, digits and '._@-', was {self.user[:80]!r}", field="scheduling.user"
            )
        if not -MAX_PRIORITY <= self.priority <= MAX_PRIORITY:
            raise InvalidSpecError(
                f"priority must be -{MAX_PRIORITY} to {MAX_PRIORITY}, was {self.priority}", field="scheduling.priority"
            )
        if not 0 <= self.max_retries <= MAX_RETRIES:
            raise InvalidSpecError(
                f"max_retries must be 0 to {MAX_RETRIES}, was {self.max_retries}",
                field="scheduling.retry_policy.max_retries",
            )

    @property
    def num_retries_allowed(self) -> int:
        """Attempts beyond the first."""
        return 0 if self.retry is RetryMode.NEVER else self.max_retries

    def to_json(self) -> str:
        """Return canonical JSON: sorted keys, no spaces; `from_json` reads it back equal."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Scheduling:
        raw = json.loads(text)
        raw["retry"] = RetryMode(raw["retry"])
        return cls(**raw)


DEFAULT_SCHEDULING = Scheduling()


def request_digest(spec_digest: str, scheduling: Scheduling) -> str:
    """Return the digest of everything one request asks for; with the default scheduling it is the spec's own."""
    if scheduling == DEFAULT_SCHEDULING:
        return spec_digest
    return hashlib.sha256(f"{spec_digest}{scheduling.to_json()}".encode()).hexdigest()
