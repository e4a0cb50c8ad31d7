"""Changes while the store takes no writes."""

from __future__ import annotations

import asyncio

import pytest

from backend_service.operations.patience import Patience
from ktrdr_core.errors import StorageError, WriteConflictError


class Disk:
    """Refuses the next `num_refusals` writes."""

    def __init__(self, num_refusals: int) -> None:
        self.num_refusals = num_refusals
        self.num_writes = 0

    async def write(self) -> None:
        if self.num_refusals:
            self.num_refusals -= 1
            raise StorageError("the disk is full")
        self.num_writes += 1


async def test_change_waits_until_the_store_takes_it() -> None:
    disk = Disk(2)
    await Patience().until_stored(disk.write, what="training t")
    assert (disk.num_refusals, disk.num_writes) == (0, 1)


async def test_waiting_change_fails_once_the_service_stops() -> None:
    disk, patience = Disk(10**9), Patience()
    waiting = asyncio.create_task(patience.until_stored(disk.write, what="training t"))
    await asyncio.sleep(0)
    patience.give_up()
    with pytest.raises(StorageError):
        await waiting
    assert disk.num_writes == 0


async def test_other_errors_are_not_waited_out() -> None:
    async def write() -> None:
        raise WriteConflictError("a second writer")

    with pytest.raises(WriteConflictError):
        await Patience().until_stored(write, what="training t")
