"""Every way for bytes from outside to come in."""

from __future__ import annotations

from tests.fuzz.bars import BARS
from tests.fuzz.parsers import PARSERS
from tests.fuzz.storage import STORAGE
from tests.fuzz.uploads import UPLOAD

TARGETS = {target.name: target for target in (*PARSERS, UPLOAD, *STORAGE, *BARS)}
