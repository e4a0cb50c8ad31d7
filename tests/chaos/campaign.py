"""Many schedules: ten to a world, two worlds at a time, one line each and a summary of all."""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ktrdr_core.domain.progress import StateDetail, WarningDetail
from tests.chaos.backend_calls import backend_calls
from tests.chaos.observed import Observed
from tests.chaos.run import Outcome, ScheduleRun
from tests.chaos.schedule import TRAINERS, Schedule, draw_schedule
from tests.chaos.world import NUM_SLOTS, open_world
from tests.kit.builders import REPOSITORY

SCHEDULES_PER_WORLD = 10
"""Starting three services costs some ten seconds of CPU; a world that is clean after a schedule serves the next."""


@dataclass(kw_only=True)
class Totals:
    """What a campaign adds up."""

    num_passed: int = 0
    failed_seeds: list[int] = field(default_factory=list)
    states: Counter[str] = field(default_factory=Counter)
    actions: Counter[str] = field(default_factory=Counter)
    num_attempts: int = 0
    num_resumed: int = 0
    num_watchers: int = 0
    num_reconnections: int = 0

    def add(self, outcome: Outcome) -> None:
        if outcome.problems:
            self.failed_seeds.append(outcome.seed)
        else:
            self.num_passed += 1
        self.states += outcome.states
        self.actions += outcome.actions
        self.num_attempts += outcome.num_attempts
        self.num_resumed += outcome.num_resumed
        self.num_watchers += outcome.num_watchers
        self.num_reconnections += outcome.num_reconnections

    def merge(self, raw: dict[str, Any]) -> None:
        """Add what another process wrote by `to_json`."""
        for name, value in raw.items():
            mine = getattr(self, name)
            setattr(self, name, mine + (Counter(value) if isinstance(mine, Counter) else value))

    def to_json(self) -> str:
        return json.dumps(vars(self))

    def __str__(self) -> str:
        def counts(counter: Counter[str]) -> str:
            return ", ".join(f"{name} {count}" for name, count in sorted(counter.items()))

        lines = [
            f"{self.num_passed} schedules passed, {len(self.failed_seeds)} failed",
            f"trainings: {self.states.total()} ({counts(self.states)})",
            f"attempts: {self.num_attempts}, {self.num_resumed} of them went on from a checkpoint",
            f"watchers: {self.num_watchers}, reconnected {self.num_reconnections} times",
            f"actions: {self.actions.total()} ({counts(self.actions)})",
        ]
        if self.failed_seeds:
            lines.append(f"failed: {', '.join(f'seed={seed}' for seed in sorted(self.failed_seeds))}")
        return "\n".join(lines)


async def run_world(seeds: Sequence[int], directory: Path, totals: Totals, *, keeps_going: bool = False) -> bool:
    """Carry out schedules one after the other on one world; return whether all passed.

    A world in which something went wrong is not used again; its directory stays, with the logs.
    """
    left = list(seeds)
    has_passed = True
    while left and (has_passed or keeps_going):
        home = directory / f"world-{left[0]}"
        if await _use_world(left, home, totals):
            shutil.rmtree(home)
        else:
            has_passed = False
    return has_passed


async def _use_world(left: list[int], home: Path, totals: Totals) -> bool:
    """Carry out schedules, and take them from `left`, until one fails; return whether all passed."""
    first = left[0]
    schedule = draw_schedule(first)
    outcome = Outcome(seed=first)
    observed: list[Observed] = []
    shutil.rmtree(home, ignore_errors=True)  # of an earlier campaign in this directory
    try:
        async with open_world(home) as world:
            async with backend_calls(world.client_address) as calls:
                await calls.warm_up(len(TRAINERS), sum(NUM_SLOTS[name] for name in TRAINERS))
            while left and not outcome.problems:
                schedule = draw_schedule(left.pop(0))
                outcome = Outcome(seed=schedule.seed)
                for service in world.services.values():
                    service.note(f"schedule seed={schedule.seed}")
                async with backend_calls(world.client_address) as calls:
                    run = ScheduleRun(schedule, world, calls, outcome)
                    observed = list(run.observed.values())
                    await run.run()
                if not outcome.problems:
                    if not left:
                        outcome.problems += await world.stop()
                    if not outcome.problems:
                        _add(outcome, totals)
    except AssertionError as error:  # a service that does not start, or a process that cannot be killed
        outcome.problems.append(str(error))
    if outcome.problems:
        left[:] = [seed for seed in left if seed != schedule.seed]
        _add(outcome, totals)
        _tell_failure(schedule, outcome, observed, home, first)
    return not outcome.problems


def _add(outcome: Outcome, totals: Totals) -> None:
    totals.add(outcome)
    print(outcome, flush=True)


def _tell_failure(
    schedule: Schedule, outcome: Outcome, observed: Sequence[Observed], home: Path, first_seed: int
) -> None:
    lines = [str(schedule), "", "problems:", *(f"  {problem}" for problem in outcome.problems), ""]
    for each in observed:
        lines.append(f"{each.plan.name} ({each.training_id}) {each.state}, attempts {each.attempts}")
        lines += [
            f"  {event.sequence:4d} {event.create_time:%H:%M:%S.%f} #{event.attempt} {event.detail}"
            for event in each.history
            if isinstance(event.detail, StateDetail | WarningDetail)
        ]
        lines += [f"  cancel: {cancel}" for cancel in each.cancels]
        lines += [f"  model: {model}" for model in each.models]
    (home / f"seed-{schedule.seed}.txt").write_text("\n".join(lines) + "\n")
    before = schedule.seed - first_seed
    again = f"python -m tests.chaos --seed {schedule.seed}"
    with_those_before = f", or with those before it: python -m tests.chaos --seed {first_seed} --schedules {before + 1}"
    print(
        f"{schedule}\nproblems:\n" + "\n".join(f"  {problem}" for problem in outcome.problems),
        f"logs and what was seen: {home}",
        f"replay: {again}{with_those_before if before else ''}",
        sep="\n",
        flush=True,
    )


async def run_worlds(seeds: Sequence[int], directory: Path, totals: Totals, *, keeps_going: bool, at_once: int) -> bool:
    """Carry out schedules in processes of their own, so many worlds at once; return whether all passed."""
    chunks = [list(seeds[start : start + SCHEDULES_PER_WORLD]) for start in range(0, len(seeds), SCHEDULES_PER_WORLD)]
    running: set[asyncio.subprocess.Process] = set()
    has_failed = False

    async def work() -> None:
        nonlocal has_failed
        while chunks and (keeps_going or not has_failed):
            chunk = chunks.pop(0)
            report = directory / f"report-{chunk[0]}.json"
            flags = ["--seed", str(chunk[0]), "--schedules", str(len(chunk)), "--directory", str(directory)]
            child = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "tests.chaos", *flags, "--report", str(report)),
                *(["--keep-going"] if keeps_going else []),
                cwd=REPOSITORY,
            )
            running.add(child)
            code = await child.wait()
            running.discard(child)
            if report.exists():
                totals.merge(json.loads(report.read_text()))
                report.unlink()
            elif code:
                totals.failed_seeds.append(chunk[0])  # it broke before it could tell
            if code and not has_failed:
                has_failed = True
                if not keeps_going:
                    for other in running:
                        other.terminate()

    try:
        await asyncio.gather(*(work() for _ in range(at_once)))
    finally:
        for child in running:
            with suppress(ProcessLookupError):
                child.terminate()
        await asyncio.gather(*(child.wait() for child in running))
    return not has_failed


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the campaign the arguments ask for; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="seed of the first schedule (1)")
    parser.add_argument("--schedules", type=int, default=1, help="how many, with this seed and those after it (1)")
    parser.add_argument("--keep-going", action="store_true", help="go on after a failure")
    parser.add_argument("--at-once", type=int, default=2, help="worlds at a time (2)")
    parser.add_argument("--directory", type=Path, help="where the worlds live; logs of failures stay there")
    parser.add_argument("--print", action="store_true", help="print the schedules and do nothing")
    parser.add_argument("--report", type=Path, help=argparse.SUPPRESS)  # one process of a campaign tells the first
    given = parser.parse_args(arguments)
    seeds = range(given.seed, given.seed + given.schedules)
    if given.print:
        print(*map(draw_schedule, seeds), sep="\n")
        return 0
    directory = given.directory or Path(tempfile.mkdtemp(prefix="ktrdr-chaos-"))
    directory.mkdir(parents=True, exist_ok=True)
    totals = Totals()
    began = time.monotonic()
    if given.report is not None or len(seeds) <= SCHEDULES_PER_WORLD:
        campaign = run_world(seeds, directory, totals, keeps_going=given.keep_going)
    else:
        campaign = run_worlds(seeds, directory, totals, keeps_going=given.keep_going, at_once=given.at_once)
    has_passed = False
    with suppress(asyncio.CancelledError):
        has_passed = asyncio.run(_until_terminated(campaign))
    if given.report is not None:
        given.report.write_text(totals.to_json())
    else:
        print(f"{totals}\nin {time.monotonic() - began:.0f} s", flush=True)
    if has_passed and given.directory is None:
        shutil.rmtree(directory)
    return 0 if has_passed else 1


async def _until_terminated(campaign: Coroutine[Any, Any, bool]) -> bool:
    """Await a campaign; SIGTERM and Ctrl-C cancel it, so that no process of a world is left."""
    task = asyncio.create_task(campaign)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    return await task
