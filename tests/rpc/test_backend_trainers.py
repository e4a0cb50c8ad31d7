"""Trainers as the backend sees them: asked, lost, found again, counted, drained."""

from __future__ import annotations

import asyncio
import json
import time

import pytest

from backend_service.orchestration.trainer_channel import CHECK_SPEC_TIMEOUT_S, TrainerChannels
from backend_service.servicers.messages import trainer_to_proto
from ktrdr_core.domain.spec import TrainingSpec
from ktrdr_core.errors import (
    InvalidSpecError,
    NoSlotError,
    NotFoundError,
    SeriesNotFoundError,
    StorageError,
    UnavailableError,
)
from tests.kit.announcing_trainer import LEASE_S, Config, an_info, following, see, told_trainer
from tests.kit.builders import strategy_text
from tests.kit.eventually import eventually
from tests.kit.tcp_proxy import TcpProxy

NOBODY = "127.0.0.1:1"
AN_HOUR_S = 3600.0


async def test_configured_trainer_is_asked_in_the_background_and_tells_what_it_is() -> None:
    async with told_trainer(an_info("t1", slots=4, free=3, gpus=1)) as (_, address), following(address) as trainers:
        health = await see(trainers, is_healthy=True)
        assert (health.address, health.trainer_id, health.message) == (address, "t1", "SERVING")
        assert trainers.trainer_id_of(address) == "t1"
        assert trainers.resolve("elsewhere:1", "t1") == address
        assert trainers.resolve("elsewhere:1", "unknown") == "elsewhere:1"
        message = trainer_to_proto(health)
    assert (message.address, message.trainer_id, message.is_healthy) == (address, "t1", True)
    assert (message.version, message.python_version, message.torch_version) == ("1.4.0", "3.11.2", "2.13.0")
    assert (message.num_slots, message.num_free_slots, message.num_sessions) == (4, 3, 0)
    assert (message.has_gpu, list(message.devices)) == (True, ["GPU", "CPU"])
    assert [device.HasField("memory_available_gb") for device in message.device_details] == [True, False]
    assert message.HasField("silence")
    assert (message.is_draining, message.is_registered) == (False, False)


async def test_what_is_known_is_asked_again_once_it_is_too_old() -> None:
    async with (
        told_trainer(an_info("t1")) as (trainer, address),
        following(address, is_started=False) as trainers,
    ):
        assert (await trainers.check_all(max_age_s=AN_HOUR_S))[0].is_healthy
        await trainers.check_all(max_age_s=AN_HOUR_S)
        assert trainer.num_asked == 1
        await trainers.check_all(max_age_s=0.0)
        await trainers.check_all()
        assert trainer.num_asked == 3


async def test_trainer_that_ends_is_lost_after_a_lease_and_found_when_it_is_back() -> None:
    changes: list[int] = []
    async with following(NOBODY) as never, told_trainer(an_info("t1")) as (_, address), following(address) as trainers:
        trainers.on_change = lambda: changes.append(trainers.free_slots(address))
        await see(trainers, is_healthy=True)
        unheard = await see(never, is_lost=True)
        assert unheard.silence_s is None
        async with TcpProxy(address) as proxy, following(proxy.address) as cut_off:
            await see(cut_off, is_healthy=True)
            await proxy.cut()
            lost = await see(cut_off, is_lost=True)
            assert lost.silence_s is not None
            assert lost.silence_s > LEASE_S
            assert cut_off.free_slots(proxy.address) == 0
            heard: list[int] = []
            cut_off.on_change = lambda: heard.append(cut_off.free_slots(proxy.address))
            await proxy.restore()
            assert not (await see(cut_off, is_healthy=True)).is_lost
            await eventually(lambda: heard[-1:] == [2])
    assert changes[:1] == [2]


async def test_trainer_that_hangs_is_unhealthy_within_the_limit_and_asked_once_at_a_time() -> None:
    async with (
        told_trainer(an_info("t1")) as (_, address),
        TcpProxy(address) as proxy,
        following(proxy.address, health_timeout_s=0.2, lease_s=3600.0) as trainers,
    ):
        await see(trainers, is_healthy=True)
        await proxy.pause()
        hanging = await see(trainers, is_healthy=False)
        assert (hanging.message, hanging.is_lost) == ("did not answer within 0.2 s", False)
        await asyncio.gather(*(trainers.check_all() for _ in range(20)))
        assert sum(task.get_name().startswith("ask-") for task in asyncio.all_tasks()) <= 1
        await proxy.restore()
        await see(trainers, is_healthy=True)


async def test_cold_trainer_is_healthy_before_it_knows_its_devices_and_is_waited_for_where_they_matter() -> None:
    async with (
        told_trainer(an_info("t1", gpus=1)) as (trainer, address),
        following(address, health_timeout_s=1.0) as trainers,
    ):
        trainer.may_answer.clear()
        cold = await see(trainers, is_healthy=True)
        assert (cold.info, cold.num_free_slots) == (None, 0)
        looking = asyncio.create_task(trainers.check_all(needs_devices=True, max_age_s=AN_HOUR_S))
        await eventually(lambda: trainer.num_waiting > 1)  # one by the background, one that waits for longer
        trainer.may_answer.set()
        assert (await looking)[0].num_gpus == 1
        await see(trainers, num_free_slots=2)


async def test_trainer_of_another_version_gets_nothing_and_both_versions_are_named() -> None:
    info = an_info("t1")
    info.version = "1.5.0"
    async with told_trainer(info) as (trainer, address), following(address) as trainers:
        health = await see(trainers, trainer_id="t1")
        assert not health.is_healthy
        assert "1.5.0" in health.message
        assert "1.4.2" in health.message
        assert trainers.free_slots(address) == 0
        trainer.info = an_info("t1")
        await see(trainers, is_healthy=True)


async def test_trainer_that_cannot_train_says_why() -> None:
    info = an_info("t1")
    info.unavailable_reason = "torch is not installed"
    async with told_trainer(info) as (trainer, address), following(address) as trainers:
        await trainer.stop_serving()
        assert (await see(trainers, trainer_id="t1", is_healthy=False)).message == "torch is not installed"
        trainer.info = an_info("t1")
        await see(trainers, message="answered NOT_SERVING", is_healthy=False)


async def test_trainer_that_drains_by_itself_gets_nothing() -> None:
    async with told_trainer(an_info("t1")) as (trainer, address), following(address) as trainers:
        await see(trainers, is_healthy=True)
        trainer.info.is_draining = True
        health = await see(trainers, is_draining=True)
        assert health.is_healthy
        assert trainers.free_slots(address) == 0


async def test_sessions_are_counted_between_reports() -> None:
    async with (
        told_trainer(an_info("t1", slots=3, free=2)) as (trainer, address),
        following(address, is_started=False) as trainers,
    ):
        await trainers.check_all()
        assert (trainers.free_slots(address), trainers.num_free_slots, trainers.num_slots) == (2, 2, 3)
        trainers.reserve(address)
        assert trainers.free_slots(address) == 1
        trainer.info.num_free_slots = 1  # it has heard of it too
        (health,) = await trainers.check_all()
        assert (health.num_free_slots, health.num_sessions) == (1, 1)
        trainers.reserve(address)
        assert trainers.free_slots(address) == 0
        trainers.release(address)
        trainers.release(address)
        assert trainers.free_slots(address) == 2
        trainers.mark_full(address)
        assert trainers.free_slots(address) == 0
        await trainers.check_all()
        assert trainers.free_slots(address) == 1


async def test_a_report_older_than_a_session_cannot_make_its_slot_free() -> None:
    async with (
        told_trainer(an_info("t1", slots=1)) as (_, address),
        following(address, is_started=False) as trainers,
    ):
        await trainers.check_all()
        trainers.reserve(address)
        await trainers.check_all()  # its Train has not arrived yet: the trainer still tells of a free slot
        assert trainers.free_slots(address) == 0


async def test_what_changes_while_a_trainer_is_asked_counts_as_not_told() -> None:
    async with (
        told_trainer(an_info("t1", slots=2, free=1)) as (trainer, address),
        following(address, is_started=False) as trainers,
    ):
        for change in (trainers.reserve, trainers.release):
            trainer.may_answer.clear()
            asking = asyncio.create_task(trainers.check_all())
            await eventually(lambda: trainer.num_waiting)
            change(address)
            trainer.may_answer.set()
            (health,) = await asking
            assert health.num_free_slots == 1 - health.num_sessions


async def test_observer_is_told_once_a_turn_and_only_of_what_helps_those_who_wait() -> None:
    changes: list[int] = []
    async with (
        told_trainer(an_info("t1", slots=2)) as (_, address),
        following(address, is_started=False) as trainers,
    ):
        await trainers.check_all()
        await asyncio.sleep(0)
        trainers.on_change = lambda: changes.append(trainers.free_slots(address))
        trainers.reserve(address)
        trainers.reserve(address)
        await asyncio.sleep(0)
        assert changes == []
        trainers.release(address)
        trainers.release(address)
        await asyncio.sleep(0)
        assert changes == [2]
        await trainers.set_draining("t1", True)
        await asyncio.sleep(0)
        await trainers.set_draining(address, False)
        await asyncio.sleep(0)
        assert changes == [2, 0, 2]


async def test_two_addresses_of_one_trainer_are_no_two_trainers() -> None:
    async with (
        told_trainer(an_info("t1")) as (_, address),
        TcpProxy(address) as first,
        following(first.address, address) as trainers,
    ):
        assert (await see(trainers, 0, is_healthy=True)).trainer_id == "t1"
        begin = time.monotonic()
        again = await see(trainers, 1, is_healthy=False, trainer_id="")
        await eventually(lambda: time.monotonic() > begin + 2 * LEASE_S)
        await see(trainers, 1, is_lost=False)  # it answers, it is only of no use
        for _ in range(20):
            assert [health.is_healthy for health in await trainers.check_all()] == [True, False]
        assert first.address in again.message
        assert trainers.num_slots == 2
        await first.cut()
        await see(trainers, 1, is_healthy=True)
        assert trainers.resolve(first.address, "t1") == address


async def test_trainer_that_answers_at_its_second_address_first_is_never_two() -> None:
    async with (
        told_trainer(an_info("t1")) as (_, address),
        TcpProxy(address) as first,
        following(first.address, address, is_started=False) as trainers,
    ):
        await first.cut()
        assert [health.is_healthy for health in await trainers.check_all()] == [False, True]
        await first.restore()

        async def is_first_again() -> bool:
            one, two = await trainers.check_all()
            assert one.is_healthy != two.is_healthy
            return one.is_healthy

        await eventually(is_first_again)


async def test_configured_trainer_is_never_forgotten() -> None:
    async with following(NOBODY, forget_after_s=0.0) as trainers:
        await see(trainers, is_lost=True)
        begin = time.monotonic()
        await eventually(lambda: time.monotonic() > begin + LEASE_S)
        assert len(await trainers.check_all()) == 1


async def test_another_trainer_at_a_known_address_takes_its_place() -> None:
    async with told_trainer(an_info("old")) as (trainer, address), following(address) as trainers:
        await see(trainers, trainer_id="old")
        trainer.info = an_info("new", slots=5)
        assert (await see(trainers, trainer_id="new")).num_slots == 5
        assert trainers.resolve("where-it-was:1", "old") == "where-it-was:1"


async def test_drained_trainer_gets_nothing_also_after_a_restart() -> None:
    config = Config()
    async with told_trainer(an_info("t1")) as (_, address):
        async with following(address, config=config) as trainers:
            await see(trainers, is_healthy=True)
            health = await trainers.set_draining(address, True)
            assert (health.is_draining, health.is_healthy, trainers.free_slots(address)) == (True, True, 0)
            assert "drained" in health.message
        async with TcpProxy(address) as moved, following(moved.address, config=config) as trainers:
            await see(trainers, trainer_id="t1", is_draining=True)
            assert not (await trainers.set_draining("t1", False)).is_draining
        async with following(address, config=config) as trainers:
            await see(trainers, trainer_id="t1", is_draining=False)


async def test_trainer_that_never_answered_is_drained_by_its_address() -> None:
    config = Config()
    async with TcpProxy() as proxy, told_trainer(an_info("t1")) as (_, address):
        async with following(proxy.address, config=config) as trainers:
            assert (await trainers.set_draining(proxy.address, True)).is_draining
        async with following(proxy.address, config=config) as trainers:
            proxy.target = address
            await see(trainers, trainer_id="t1", is_draining=True)
            assert not (await trainers.set_draining("t1", False)).is_draining
        async with following(proxy.address, config=config) as trainers:
            await see(trainers, trainer_id="t1", is_draining=False)


async def test_unknown_trainer_cannot_be_drained_and_those_known_are_named() -> None:
    async with told_trainer(an_info("t1")) as (_, address), following(address) as trainers:
        await see(trainers, is_healthy=True)
        with pytest.raises(NotFoundError, match=f"'t2'.*t1 at {address}"):
            await trainers.set_draining("t2", True)


async def test_drain_that_cannot_be_stored_does_not_happen() -> None:
    config = Config()
    async with told_trainer(an_info("t1")) as (_, address), following(address, config=config) as trainers:
        await see(trainers, is_healthy=True)
        config.problem = StorageError("the disk is full")
        with pytest.raises(StorageError):
            await trainers.set_draining(address, True)
        assert trainers.free_slots(address) == 2
        config.problem = None
        await asyncio.gather(trainers.set_draining("t1", True), trainers.set_draining(address, False))
        assert "t1" not in config.values["drained_trainers"]
        assert trainers.free_slots(address) == 2


async def test_drains_take_their_turn_and_outlive_who_asked() -> None:
    config = Config()
    async with (
        told_trainer(an_info("t1")) as (_, one),
        told_trainer(an_info("t2")) as (_, two),
        following(one, two, config=config, is_started=False) as trainers,
    ):
        await trainers.check_all()
        config.may_write.clear()
        asking = [asyncio.create_task(trainers.set_draining(trainer, True)) for trainer in ("t1", "t2")]
        await asyncio.sleep(0)
        asking[0].cancel()
        await asyncio.wait(asking[:1])
        assert asking[0].cancelled()
        assert trainers.num_free_slots == 4  # nothing is stored yet
        config.may_write.set()
        await asking[1]
        assert [health.is_draining for health in await trainers.check_all()] == [True, True]
        assert set(json.loads(config.values["drained_trainers"])) == {"t1", "t2"}


async def test_backend_that_stood_still_itself_calls_nobody_lost() -> None:
    seen: list[int] = []
    async with (
        told_trainer(an_info("t1")) as (_, address),
        TcpProxy(address) as proxy,
        following(proxy.address) as trainers,
    ):
        await see(trainers, is_healthy=True)
        await asyncio.sleep(0)  # what has changed so far is told
        trainers.on_change = lambda: seen.append(trainers.free_slots(proxy.address))
        until = time.monotonic() + 1.5 * LEASE_S
        while time.monotonic() < until:  # as a process that is stopped: its loop does not run
            pass
        before = (await trainers.check_all(max_age_s=AN_HOUR_S))[0].silence_s
        await eventually(lambda: trainers.free_slots(proxy.address) == 2)
        await see(trainers, is_healthy=True, is_lost=False)
        await trainers.check_all()
    assert before is not None
    assert before > LEASE_S  # so that without the allowance it would have been lost
    assert seen == []


async def test_first_trainer_that_takes_a_spec_ends_the_question() -> None:
    spec = TrainingSpec(strategy_yaml=strategy_text())
    async with (
        told_trainer(an_info("t1")) as (refusing, first),
        told_trainer(an_info("t2")) as (taking, second),
        TcpProxy(first) as hanging,
        following(first, hanging.address, second) as trainers,
    ):
        await see(trainers, 2, is_healthy=True)
        await hanging.pause()
        refusing.refusal = SeriesNotFoundError("there are no bars of XAUUSD 1h")
        async with asyncio.timeout(CHECK_SPEC_TIMEOUT_S - 0.5):
            await trainers.check_spec(spec)
        await hanging.restore()
        taking.refusal = InvalidSpecError("epochs must be at least 1", field="spec.epochs")
        with pytest.raises((SeriesNotFoundError, InvalidSpecError)):
            await trainers.check_spec(spec)
        for trainer in (refusing, taking):
            trainer.refusal = NoSlotError("busy")
        with pytest.raises(UnavailableError, match=r"no trainer answers.*busy"):
            await trainers.check_spec(spec)


async def test_spec_is_checked_by_nobody_where_nobody_is() -> None:
    spec = TrainingSpec(strategy_yaml=strategy_text())
    async with following() as nobody, following(NOBODY) as lost:
        with pytest.raises(UnavailableError, match="no trainer is known"):
            await nobody.check_spec(spec)
        await see(lost, is_lost=True)
        with pytest.raises(UnavailableError, match="every trainer is lost"):
            await lost.check_spec(spec)


async def test_channel_nobody_needs_is_closed_and_made_again_when_asked_for() -> None:
    async with told_trainer(an_info("t1")) as (_, address):
        channels = TrainerChannels(health_timeout_s=5.0)
        kept, closed = channels.channel("127.0.0.1:2"), channels.channel(address)
        await channels.close_unused(lambda _: False, unused_s=AN_HOUR_S)
        assert channels.channel(address) is closed
        await channels.close_unused(lambda each: each != address, unused_s=-1.0)
        assert channels.channel("127.0.0.1:2") is kept
        assert channels.channel(address) is not closed
        assert (await channels.ask(address)).is_reached
        await channels.close()
