"""What everything in a model store is called.

```
<root>/<strategy>/<symbols>_<timeframes>_v<N>/       a version of the set <symbols>_<timeframes>
<root>/<strategy>/<symbols>_<timeframes>_<alias>     symbolic link to a version beside it; "latest" is one
<root>/<strategy>/<symbols>_<timeframes>.versions    the highest number ever given, so none is given twice
<root>/.aside/<training_id>-<attempt>/               an artifact that is kept, but is no version
<root>/.staging/                                     on its way in or out
<root>/.index.sqlite                                 what is there, for lists; made anew when it is lost
<root>/.lock                                         held by who changes anything
```
"""

from __future__ import annotations

import os
import re
from hashlib import sha256
from pathlib import Path
from uuid import UUID

from ktrdr_core.config.naming import check_name, is_name
from ktrdr_core.domain.result import TrainingResult
from ktrdr_core.errors import InvalidInputError

LATEST = "latest"
ASIDE_DIR = ".aside"
ASIDE_NAME = "aside"
STAGING_DIR = ".staging"
INDEX_FILE = ".index.sqlite"
LOCK_FILE = ".lock"

_VERSION_DIR = re.compile(r"(?P<set>.+)_v(?P<version>[1-9][0-9]{0,17})")
_ALIAS = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")
# As the last part of a link's name these would make it look like a version or the newest one of another set.
_RESERVED_ALIAS = re.compile(r"(?:.*_)?(?:latest|v[0-9]+)")
_MAX_SET_LENGTH = 100


def split_version(name: str) -> tuple[str, int] | None:
    """Return set and number that the name of a version's directory tells; None if it is no such name."""
    match = _VERSION_DIR.fullmatch(name)
    return (match["set"], int(match["version"])) if match and is_name(name) else None


def version_name(set_name: str, version: int) -> str:
    return f"{set_name}_v{version}"


def link_target(link: Path) -> tuple[str, int] | None:
    """Return set and number of the version that a symbolic link points at; None if it is no alias."""
    try:
        target = os.readlink(link)
    except OSError:  # no link, or removed a moment ago
        return None
    found = split_version(target)
    return found if found is not None and link.name.startswith(f"{found[0]}_") else None


def check_alias(alias: str) -> str:
    """Return `alias` if it may be given to a version.

    Raises:
        InvalidInputError: It is no name for one, or `latest`, which moves by itself.
    """
    if not _ALIAS.fullmatch(alias) or _RESERVED_ALIAS.fullmatch(alias):
        raise InvalidInputError(
            "alias must be 1 to 40 lower-case letters, digits, '-' or '_', beginning with a letter or digit and not "
            f"ending in 'latest' or a version such as 'v3', was {alias[:80]!r}",
            field="alias",
        )
    return alias


def place(result: TrainingResult) -> tuple[str, str]:
    """Return the strategy's name and the name of the set of versions a model belongs to; each a safe path part.

    Raises:
        InvalidInputError: Strategy, a symbol or a timeframe is no name.
    """
    strategy_name = check_name(
        result["config"]["strategy_config"]["name"], field="strategy_config.name", what="strategy name"
    )
    parts = []
    for field in ("symbols", "timeframes"):
        values: list[str] = result["metadata"]["symbols" if field == "symbols" else "timeframes"]
        if not isinstance(values, list) or not values:
            raise InvalidInputError(f"metadata.{field} is empty; a model needs at least one", field=field)
        parts.append(
            "-".join(check_name(value, field=f"metadata.{field}", what=field.removesuffix("s")) for value in values)
        )
    set_name = "_".join(parts)
    if len(set_name) > _MAX_SET_LENGTH:
        set_name = f"{set_name[:60].rstrip('.-_')}-{sha256(set_name.encode()).hexdigest()[:16]}"
    return strategy_name, set_name


def aside_name(training_id: str, attempt: int) -> str:
    """Return the name of the directory that keeps an attempt's artifact.

    Raises:
        InvalidInputError: The training's id is no name, or it is longer than a directory's name may be.
    """
    if attempt < 0:
        raise InvalidInputError(f"attempt must be at least 0, was {attempt}", field="attempt")
    for name in (training_id, f"{training_id}-{attempt}"):
        check_name(name, field="training_id", what="training id", error_class=InvalidInputError)
    return name


def is_uuid(text: object) -> bool:
    try:
        return isinstance(text, str) and str(UUID(text)) == text.lower()
    except ValueError:
        return False
