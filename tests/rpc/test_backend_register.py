"""Trainers that announce themselves: leases held, renewed, replaced, lost, taken up again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from ktrdr.trainer.v1 import trainer_registry_service_pb2 as registry_pb
from ktrdr.trainer.v1.trainer_info_pb2 import Device, TrainerInfo

from backend_service.orchestration.registry import TrainerRegistry
from backend_service.orchestration.selector import ExecutionModeSelector
from ktrdr_core.errors import (
    InvalidInputError,
    KtrdrError,
    NoSlotError,
    TrainerLostError,
    UnavailableError,
    VersionSkewError,
    WriteConflictError,
)
from tests.kit.announcing_trainer import (
    LEASE_S,
    RENEW_S,
    Config,
    an_info,
    following,
    see,
    serving_registry,
    told_trainer,
)
from tests.kit.eventually import eventually
from tests.kit.tcp_proxy import TcpProxy

NOBODY = "127.0.0.1:1"


async def test_announced_trainer_is_placed_on_and_told_its_lease_and_what_is_fenced() -> None:
    async with (
        told_trainer(an_info("t1", slots=3)) as (_, address),
        following() as trainers,
        serving_registry(trainers) as served,
    ):
        asked: list[tuple[str, str]] = []

        def fenced(trainer_id: str, at: str) -> list[str]:
            asked.append((trainer_id, at))
            return ["s-1", "s-2"]

        served.registry.fenced_session_ids = fenced
        lease = served.open()
        answer = await lease.renew("t1", address, an_info("t1", slots=3))
        assert answer.lease.ToMilliseconds() == LEASE_S * 1000
        assert answer.renew_after.ToMilliseconds() == RENEW_S * 1000
        assert list(answer.fenced_session_ids) == ["s-1", "s-2"]
        assert asked == [("t1", address)]
        lease.keep("t1", address, an_info("t1", slots=3))
        health = await see(trainers, is_healthy=True)
        assert (health.trainer_id, health.is_registered, health.num_free_slots) == ("t1", True, 3)
        assert (await ExecutionModeSelector(trainers=trainers).select("host")).trainer == address


async def test_renewals_tell_of_free_slots() -> None:
    changes: list[int] = []
    async with (
        told_trainer(an_info("t1", free=0)) as (_, address),
        following(lease_s=60.0, renew_s=30.0) as trainers,
        serving_registry(trainers) as served,
    ):
        lease = served.open()
        await lease.renew("t1", address, an_info("t1", free=0))
        await see(trainers, is_healthy=True)
        await asyncio.sleep(0)  # what has changed so far is told
        trainers.on_change = lambda: changes.append(trainers.free_slots(address))
        await lease.renew("t1", address, an_info("t1", free=2))
        await eventually(lambda: changes == [2])
        trainers.mark_full(address)
        await lease.renew("t1", address, an_info("t1", free=1))
        assert trainers.free_slots(address) == 1


@pytest.mark.parametrize(
    ("trainer_id", "address", "field"),
    [
        ("", "127.0.0.1:5", "trainer_id"),
        ("a/b", "127.0.0.1:5", "trainer_id"),
        ("a\n", "127.0.0.1:5", "trainer_id"),
        ("ü", "127.0.0.1:5", "trainer_id"),
        ("a" * 129, "127.0.0.1:5", "trainer_id"),
        ("t1", "", "address"),
        ("t1", "127.0.0.1", "address"),
        ("t1", ":5", "address"),
        ("t1", "127.0.0.1:", "address"),
        ("t1", "127.0.0.1:0", "address"),
        ("t1", "127.0.0.1:65536", "address"),
        ("t1", "127.0.0.1:٥", "address"),
        ("t1", "unix:/run/x.sock:5", "address"),
        ("t1", "dns://evil/name:5", "address"),
        ("t1", "::1:5", "address"),
        ("t1", f"{'a' * 255}:5", "address"),
        ("t1", "0.0.0.0:5", "address"),
        ("t1", "[::]:5", "address"),
    ],
)
async def test_broken_renewal_is_refused_by_field(trainer_id: str, address: str, field: str) -> None:
    async with following() as trainers, serving_registry(trainers) as served:
        with pytest.raises(InvalidInputError) as caught:
            await served.open().renew(trainer_id, address, an_info())
        assert [violation.field for violation in caught.value.violations] == [field]
        assert await trainers.check_all() == []


@pytest.mark.parametrize("address", ["gpu-1.example.org:50052", "[::1]:50052", "10.0.0.7:1"])
async def test_names_and_numbers_are_addresses(address: str) -> None:
    async with following(is_started=False) as trainers, serving_registry(trainers) as served:
        await served.open().renew("uuid-1_2.3" + "x" * 118, address, an_info())
        assert trainers.resolve("", "uuid-1_2.3" + "x" * 118) == address


async def test_info_that_is_too_large_to_keep_is_refused() -> None:
    huge = TrainerInfo(version="1.4.0", devices=[Device(name="x" * 70_000)])
    async with following() as trainers, serving_registry(trainers) as served:
        with pytest.raises(InvalidInputError, match="at most 65536 bytes"):
            await served.open().renew("t1", NOBODY, huge)


async def test_stream_renews_one_lease_only() -> None:
    async with following() as trainers, serving_registry(trainers) as served:
        lease = served.open()
        await lease.renew("t1", NOBODY, an_info())
        with pytest.raises(InvalidInputError, match="one trainer's lease"):
            await lease.renew("t2", NOBODY, an_info())


async def test_other_version_is_refused_with_both_named() -> None:
    old = an_info("t1")
    old.version = "0.9.1"
    async with following() as trainers, serving_registry(trainers) as served:
        with pytest.raises(VersionSkewError) as caught:
            await served.open().renew("t1", NOBODY, old)
        assert caught.value.metadata == {"backend_version": "1.4.2", "trainer_version": "0.9.1"}
        assert await trainers.check_all() == []


async def test_second_stream_of_a_trainer_replaces_the_first() -> None:
    async with (
        told_trainer(an_info("t1")) as (_, address),
        following(lease_s=60.0) as trainers,
        serving_registry(trainers) as served,
    ):
        first, second = served.open(), served.open()
        await first.renew("t1", address, an_info("t1"))
        await see(trainers, is_healthy=True)
        second.keep("t1", address, an_info("t1"))
        assert isinstance(await first.end(), WriteConflictError)
        await eventually(lambda: len(second.answers) > 3)
        assert [health.is_healthy for health in await trainers.check_all()] == [True]


class Stream:
    """A stream that remembers how it was ended."""

    def __init__(self) -> None:
        self.errors: list[KtrdrError] = []

    def end(self, error: KtrdrError) -> None:
        self.errors.append(error)


async def test_replaced_stream_that_leaves_late_takes_nothing_with_it() -> None:
    first, second = Stream(), Stream()
    async with following(lease_s=0.2) as trainers:
        for stream in (first, second):
            trainers.renew(stream, "t1", NOBODY, an_info())
        trainers.leave(first, "t1")
        await eventually(lambda: second.errors)
    assert [type(error) for error in (*first.errors, *second.errors)] == [WriteConflictError, TrainerLostError]


async def test_silence_ends_the_lease_and_the_trainer_is_lost() -> None:
    async with (
        told_trainer(an_info("t1")) as (trainer, address),
        following() as trainers,
        serving_registry(trainers) as served,
    ):
        lease = served.open()
        lease.keep("t1", address, an_info("t1"))
        await see(trainers, is_healthy=True)
        await lease.fall_silent()
        await trainers.check_all()  # it answers, but that renews no lease
        assert isinstance(await lease.end(), TrainerLostError)
        (lost,) = await trainers.check_all()
        assert (lost.is_lost, lost.is_healthy, trainers.free_slots(address)) == (True, False, 0)
        assert lost.message == "it renews no lease"
        asked = trainer.num_asked
        assert (await trainers.check_all())[0].is_lost
        assert trainer.num_asked == asked
        served.open().keep("t1", address, an_info("t1"))
        await see(trainers, is_healthy=True, is_lost=False)


async def test_trainer_that_is_back_in_time_was_never_lost() -> None:
    changes: list[int] = []
    async with (
        told_trainer(an_info("t1")) as (_, address),
        following(lease_s=60.0) as trainers,
        serving_registry(trainers) as served,
    ):
        first = served.open()
        first.keep("t1", address, an_info("t1"))
        await see(trainers, is_healthy=True)
        trainers.reserve(address)
        await asyncio.sleep(0)
        trainers.on_change = lambda: changes.append(trainers.free_slots(address))
        await first.close()
        again = served.open()
        again.keep("t1", address, an_info("t1", free=1))
        await eventually(lambda: len(again.answers) > 2)
        (health,) = await trainers.check_all()
        assert (health.is_healthy, health.is_lost, health.num_sessions) == (True, False, 1)
        assert changes == []


async def test_placing_asks_a_trainer_whose_stream_has_broken() -> None:
    async with (
        TcpProxy() as proxy,
        told_trainer(an_info("t1")) as (_, address),
        following(lease_s=60.0, renew_s=30.0) as trainers,
        serving_registry(trainers) as served,
    ):
        proxy.target = address
        lease = served.open()
        await lease.renew("t1", proxy.address, an_info("t1"))
        await see(trainers, is_healthy=True)
        await proxy.cut()
        assert (await trainers.check_all(max_age_s=30.0))[0].is_healthy
        await lease.close()

        async def is_noticed() -> bool:
            return not (await trainers.check_all(max_age_s=30.0))[0].is_healthy

        await eventually(is_noticed)


async def test_trainer_that_comes_back_elsewhere_is_the_same_trainer() -> None:
    async with (
        told_trainer(an_info("t1")) as (_, old),
        told_trainer(an_info("t1")) as (_, new),
        following() as trainers,
        serving_registry(trainers) as served,
    ):
        first = served.open()
        first.keep("t1", old, an_info("t1"))
        await see(trainers, is_healthy=True)
        trainers.reserve(old)
        await first.close()
        served.open().keep("t1", new, an_info("t1", free=1))
        health = await see(trainers, is_healthy=True, address=new)
        assert trainers.resolve(old, "t1") == new
        assert trainers.trainer_id_of(old) == "t1"
        assert health.num_sessions == 1
        trainers.release(old)
        assert (await trainers.check_all())[0].num_sessions == 0


async def test_new_address_is_asked_before_anything_goes_there() -> None:
    async with (
        told_trainer(an_info("t1")) as (_, address),
        following(is_started=False) as trainers,
        serving_registry(trainers) as served,
    ):
        lease = served.open()
        await lease.renew("t1", address, an_info("t1"))
        assert trainers.free_slots(address) == 0
        await trainers.check_all()
        assert trainers.free_slots(address) == 2
        await lease.renew("t1", NOBODY, an_info("t1"))
        assert trainers.resolve(address, "t1") == NOBODY
        assert trainers.free_slots(NOBODY) == 0


async def test_new_address_on_the_same_stream_is_asked_at_once() -> None:
    async with (
        told_trainer(an_info("t1")) as (_, old),
        told_trainer(an_info("t1")) as (_, new),
        following(lease_s=3600.0, renew_s=3600.0) as trainers,
        serving_registry(trainers) as served,
    ):
        lease = served.open()
        await lease.renew("t1", old, an_info("t1"))
        await eventually(lambda: trainers.free_slots(old) == 2)
        await lease.renew("t1", new, an_info("t1"))
        assert trainers.resolve(old, "t1") == new
        await eventually(lambda: trainers.free_slots(new) == 2)


async def test_lease_of_a_configured_trainer_ends_too() -> None:
    async with (
        TcpProxy() as configured,
        told_trainer(an_info("t1")) as (_, address),
        following(configured.address, lease_s=1.0) as trainers,
        serving_registry(trainers) as served,
    ):
        lease = served.open()
        await lease.renew("t1", address, an_info("t1"))
        configured.target = address
        await see(trainers, 0, trainer_id="t1", is_healthy=True)  # it was two, and is one
        assert isinstance(await lease.end(), TrainerLostError)
        assert (await see(trainers, is_healthy=True)).address == configured.address


async def test_configured_trainer_that_announces_itself_is_one_trainer() -> None:
    async with (
        told_trainer(an_info("t1")) as (_, address),
        TcpProxy(address) as front,
        following(address) as trainers,
        serving_registry(trainers) as served,
    ):
        lease = served.open()
        lease.keep("t1", front.address, an_info("t1"))
        health = await see(trainers, trainer_id="t1", is_registered=True, is_healthy=True)
        await eventually(lambda: trainers.num_slots == 2)
        assert len(await trainers.check_all()) == 1
        assert health.address in (address, front.address)
        assert trainers.resolve("", "t1") == trainers.resolve(front.address, "t1")


async def test_announced_address_serves_while_the_configured_one_does_not() -> None:
    async with (
        told_trainer(an_info("t1")) as (_, address),
        TcpProxy(address) as configured,
        following(configured.address) as trainers,
        serving_registry(trainers) as served,
    ):
        await see(trainers, is_healthy=True, address=configured.address)
        trainers.reserve(configured.address)
        await configured.cut()
        await see(trainers, is_healthy=False)
        served.open().keep("t1", address, an_info("t1"))
        health = await see(trainers, is_healthy=True, address=address)
        assert health.num_sessions == 1
        assert trainers.resolve(configured.address, "t1") == address


async def test_announced_address_the_backend_cannot_reach_is_told() -> None:
    async with following() as trainers, serving_registry(trainers) as served:
        served.open().keep("t1", NOBODY, an_info("t1"))
        await see(trainers, is_healthy=False, trainer_id="t1", is_lost=False)

        async def message() -> str:
            (health,) = await trainers.check_all()
            return health.message if "--advertise-address" in health.message else ""

        assert NOBODY in await eventually(message)
        assert trainers.free_slots(NOBODY) == 0


async def test_address_of_another_trainer_is_told() -> None:
    async with (
        told_trainer(an_info("t1")) as (_, address),
        following() as trainers,
        serving_registry(trainers) as served,
    ):
        served.open().keep("t2", address, an_info("t2"))
        await see(trainers, trainer_id="t2")

        async def message() -> str:
            (health,) = await trainers.check_all()
            assert not health.is_healthy
            return health.message if "t1" in health.message else ""

        assert "--advertise-address" in await eventually(message)
        assert trainers.free_slots(address) == 0


async def test_configured_trainer_keeps_its_place_from_another_that_announces_its_address() -> None:
    async with (
        told_trainer(an_info("t1")) as (_, address),
        following(address) as trainers,
        serving_registry(trainers) as served,
    ):
        await see(trainers, trainer_id="t1")
        served.open().keep("t2", address, an_info("t2"))
        await see(trainers, 1, trainer_id="t2", is_healthy=False)
        await see(trainers, 0, trainer_id="t1", is_healthy=True)
        assert trainers.num_slots == 2


async def test_two_trainers_that_announce_one_address_are_told_apart_by_who_answers() -> None:
    async with (
        told_trainer(an_info("t1", slots=4)) as (_, address),
        following() as trainers,
        serving_registry(trainers) as served,
    ):
        served.open().keep("t2", address, an_info("t2"))
        await see(trainers, 0, trainer_id="t2")
        served.open().keep("t1", address, an_info("t1", slots=4))
        await see(trainers, 1, trainer_id="t1", is_healthy=True)
        assert not (await trainers.check_all())[0].is_healthy
        assert trainers.num_slots == 4


async def test_interrupted_registry_ends_every_stream_now_and_later() -> None:
    async with following(lease_s=60.0) as trainers, serving_registry(trainers) as served:
        leases = [served.open(), served.open()]
        for number, lease in enumerate(leases):
            await lease.renew(f"t{number}", NOBODY, an_info())
        served.registry.interrupt(UnavailableError("the backend stops; register again"))
        for lease in leases:
            assert (await lease.end()).message == "the backend stops; register again"
        assert (await served.open().end()).message == "the backend stops; register again"


async def test_stream_that_is_ended_while_it_answers_takes_no_further_renewal() -> None:
    async def renewals() -> AsyncIterator[registry_pb.RegisterRequest]:
        for _ in range(2):
            yield registry_pb.RegisterRequest(trainer_id="t1", address=NOBODY, trainer=an_info())

    async with following(is_started=False) as trainers:
        registry = TrainerRegistry(trainers)
        answers = registry.hold_lease(renewals())
        await anext(answers)
        registry.interrupt(UnavailableError("the backend stops"))
        with pytest.raises(UnavailableError, match="the backend stops"):
            await anext(answers)


async def test_stream_that_says_nothing_is_ended() -> None:
    async with following(lease_s=0.1) as trainers, serving_registry(trainers) as served:
        ended = await served.open().end()
        assert isinstance(ended, UnavailableError)
        assert "send the first renewal" in ended.message


async def test_stream_the_trainer_ends_is_no_error() -> None:
    async with following() as trainers, serving_registry(trainers) as served:
        lease = served.open()
        await lease.renew("t1", NOBODY, an_info("t1"))
        await lease.call.done_writing()
        assert (await lease.call.code()).name == "OK"


async def test_number_of_announced_trainers_is_bounded_and_lost_ones_make_room() -> None:
    async with following(max_registered=2) as trainers, serving_registry(trainers) as served:
        leases = [served.open(), served.open()]
        for number, lease in enumerate(leases):
            lease.keep(f"t{number}", NOBODY, an_info())
            await see(trainers, number, trainer_id=f"t{number}")
        with pytest.raises(NoSlotError, match="at most 2"):
            await served.open().renew("t2", NOBODY, an_info())
        await leases[0].fall_silent()
        await see(trainers, 0, is_lost=True)
        await served.open().renew("t2", NOBODY, an_info())
        assert [health.trainer_id for health in await trainers.check_all()] == ["t1", "t2"]


async def test_lost_trainer_is_forgotten_after_a_while_unless_it_is_drained() -> None:
    async with following(forget_after_s=0.1) as trainers, serving_registry(trainers) as served:
        for number in range(2):
            lease = served.open()
            await lease.renew(f"t{number}", NOBODY, an_info())
            await lease.close()
        await trainers.set_draining("t1", True)

        async def ids() -> bool:
            return [health.trainer_id for health in await trainers.check_all()] == ["t1"]

        await eventually(ids)
        await trainers.set_draining("t1", False)

        async def is_empty() -> bool:
            return await trainers.check_all() == []

        await eventually(is_empty)


async def test_drained_trainer_is_listed_after_a_restart_before_it_is_back() -> None:
    config = Config()
    async with told_trainer(an_info("t1")) as (_, address):
        async with following(config=config) as trainers, serving_registry(trainers) as served:
            await served.open().renew("t1", address, an_info("t1"))
            await trainers.set_draining("t1", True)
        async with following(config=config) as trainers, serving_registry(trainers) as served:
            (health,) = await trainers.check_all()
            assert (health.trainer_id, health.is_draining, health.is_lost) == ("t1", True, True)
            served.open().keep("t1", address, an_info("t1"))
            await see(trainers, is_healthy=True, is_draining=True)
            assert trainers.free_slots(address) == 0
            await trainers.set_draining("t1", False)
            assert trainers.free_slots(address) == 2
