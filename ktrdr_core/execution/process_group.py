"""Ending a process group and knowing that it is gone."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys
import time
from pathlib import Path

from ktrdr_core.logging import get_logger

_PROC = Path("/proc")
_PR_SET_PDEATHSIG = 1
_UNREAPED_AFTER_S = 0.005
_WARN_AFTER_S = 5.0

log = get_logger(__name__)


def ask_for_signal_when_parent_dies(number: signal.Signals) -> None:
    """Have the kernel send this process a signal once the thread that started it is gone; only Linux can."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)


def kill_group(pid: int) -> None:
    """Send SIGKILL to process `pid` and to the group it leads; what is gone already is no error.

    The process is named as well because it leads its group only once it has called setsid.
    """
    for send in (os.killpg, os.kill):
        try:
            send(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
        except PermissionError:
            # macOS answers this for zombies.
            continue


def has_group(pgid: int) -> bool:
    """Return whether the kernel knows a process group `pgid`; members that died but were not reaped count."""
    try:
        os.killpg(pgid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def has_live_member(pgid: int) -> bool:
    """Return whether a member of group `pgid` is alive, that is, more than a zombie its parent never reaps."""
    if not _PROC.is_dir():
        return has_group(pgid)
    for entry in _PROC.iterdir():
        if not entry.name.isdigit():
            continue
        try:
            # "pid (name) state ppid pgrp ...": the name may hold spaces and brackets.
            state, _, group = (entry / "stat").read_text().rpartition(")")[2].split()[:3]
        except (OSError, ValueError):
            continue
        if int(group) == pgid and state not in "ZX":
            return True
    return False


def kill_child_groups() -> None:
    """Send SIGKILL to every child of this process and to the group it leads, stopped ones included (Linux)."""
    for entry in _PROC.iterdir():
        if not entry.name.isdigit():
            continue
        try:
            parent = (entry / "stat").read_text().rpartition(")")[2].split()[1]
        except (OSError, IndexError):
            continue
        if int(parent) == os.getpid():
            kill_group(int(entry.name))


async def end_group(pgid: int) -> None:
    """Kill what is left of group `pgid` and return once no member is alive.

    Call it right after the leader was reaped: pids are handed out in order, so the number is not in use again yet.
    """
    begin = time.monotonic()
    has_warned = False
    while has_group(pgid):
        kill_group(pgid)
        waited_s = time.monotonic() - begin
        if waited_s > _UNREAPED_AFTER_S and not await asyncio.to_thread(has_live_member, pgid):
            return
        if waited_s > _WARN_AFTER_S and not has_warned:
            has_warned = True
            log.warning("Process group %d survives SIGKILL after %.0f s; waiting for it", pgid, waited_s)
        await asyncio.sleep(0.001)
