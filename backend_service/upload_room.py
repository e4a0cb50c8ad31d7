"""How much may wait on disk in uploads that are not whole yet, and for how long."""

from __future__ import annotations

import shutil
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from backend_service.upload_log import FILES_DIR, read_plan
from backend_service.upload_plan import UploadPlan
from ktrdr_core.errors import QuotaExceededError


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadLimits:
    """Bounds of uploads that are not whole yet; those of trainings and imports each have their own count.

    Attributes:
        max_size_bytes: Largest artifact.
        max_num: Uploads at once.
        max_total_bytes: What they declare, together.
    """

    max_size_bytes: int
    max_num: int
    max_total_bytes: int


def check_room(root: Path, plan: UploadPlan, limits: UploadLimits) -> None:
    """Raise unless a further upload may begin in `root`; one that is there goes on.

    Raises:
        QuotaExceededError: See above.
    """
    if read_plan(root / plan.key) is not None:
        return
    is_import = not plan.training_id
    what = "imports" if is_import else "trainings"
    others = [
        found
        for directory in (root.iterdir() if root.is_dir() else ())
        if (found := read_plan(directory)) is not None and found.is_import == is_import
    ]
    if len(others) >= limits.max_num:
        raise QuotaExceededError(
            f"{len(others)} uploads of {what} are not whole yet and the limit is {limits.max_num}; wait until some are"
        )
    total = plan.size_on_disk_bytes + sum(other.size_on_disk_bytes for other in others)
    if total > limits.max_total_bytes:
        raise QuotaExceededError(
            f"with this one, uploads of {what} that are not whole yet need {total} bytes and the limit is "
            f"{limits.max_total_bytes}; wait until some are",
            metadata={"limit_bytes": str(limits.max_total_bytes)},
        )


def remove_stale(root: Path, *, older_than_s: float, keep: Collection[str] = (), is_start: bool = False) -> int:
    """Remove uploads that nothing was added to for so long; return how many.

    Args:
        root: Directory of partial uploads.
        older_than_s: See above.
        keep: Names of those that are at work.
        is_start: Nobody is at work yet: also remove what a killed service had published, or never begun.
    """
    removed = 0
    limit = time.time() - older_than_s
    for directory in root.iterdir() if root.is_dir() else ():
        if directory.name in keep or not directory.is_dir():
            continue
        is_left = is_start and not (directory / FILES_DIR).is_dir()
        if is_left or directory.stat().st_mtime < limit:
            shutil.rmtree(directory, ignore_errors=True)
            removed += 1
    return removed
