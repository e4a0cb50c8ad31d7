"""Which counter tells of the OOM killer, and from when on it counts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ktrdr_core.execution.oom_kills import OomKillWatch

PID = 42
V2, V1, HYBRID = "sys/fs/cgroup", "sys/fs/cgroup/memory", "sys/fs/cgroup/unified"


class Machine:
    """A root directory with the files the kernel would show."""

    def __init__(self, root: Path, cgroups: str) -> None:
        self.root = root
        self.write(f"proc/{PID}/cgroup", cgroups)
        self.write("proc/vmstat", "nr_free_pages 7\noom_kill 3\npgfault 9\n")
        self.now_s = 0.0

    def write(self, name: str, text: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def watch(self) -> OomKillWatch:
        return OomKillWatch(PID, lambda: self.now_s, root=self.root)


def events(count: int) -> str:
    return f"low 0\nhigh 0\nmax 12\noom 4\noom_kill {count}\noom_group_kill 0\n"


def control(count: int) -> str:
    return f"oom_kill_disable 0\nunder_oom 0\noom_kill {count}\n"


@pytest.mark.parametrize(
    ("cgroups", "name", "content"),
    [
        ("0::/system.slice/ktrdr.service\n", f"{V2}/system.slice/ktrdr.service/memory.events", events),
        ("0::/\n", f"{V2}/memory.events", events),
        ("5:cpu,memory:/docker/ab\n0::/\n", f"{V1}/docker/ab/memory.oom_control", control),
        ("4:cpu:/\n0::/a:b\n", f"{HYBRID}/a:b/memory.events", events),
        ("", "proc/vmstat", control),
        ("4:cpu:/\n0::/hidden\n", "proc/vmstat", control),
    ],
)
def test_a_kill_is_seen_by_the_counter_the_machine_has(
    tmp_path: Path, cgroups: str, name: str, content: Callable[[int], str]
) -> None:
    machine = Machine(tmp_path, cgroups)
    machine.write(name, content(5))
    watch = machine.watch()
    assert not watch.has_struck()
    machine.write(name, content(6))
    assert watch.has_struck()


def test_a_kill_elsewhere_on_the_machine_is_none_of_a_cgroup_that_counts_its_own(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "0::/own\n")
    machine.write(f"{V2}/own/memory.events", events(0))
    watch = machine.watch()
    machine.write("proc/vmstat", control(99))
    assert not watch.has_struck()


def test_a_machine_that_counts_nothing_proves_nothing(tmp_path: Path) -> None:
    watch = OomKillWatch(PID, root=tmp_path)
    watch.note_life()
    assert not watch.has_struck()


def test_a_kill_long_before_the_death_is_not_what_caused_it(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "0::/own\n")
    machine.write(f"{V2}/own/memory.events", events(0))
    watch = machine.watch()
    machine.write(f"{V2}/own/memory.events", events(1))
    machine.now_s = 5.0
    watch.note_life()
    assert watch.has_struck()  # read after its death, the last words must not hide it
    machine.now_s = 9.0
    watch.note_life()
    assert watch.has_struck()
    machine.now_s = 10.0
    watch.note_life()
    assert not watch.has_struck()
