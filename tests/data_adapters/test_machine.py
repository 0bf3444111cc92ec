import os
from pathlib import Path

import pytest

from data_adapters.machine import Machine, free_cores

TICKS = os.sysconf("SC_CLK_TCK")


class Kernel:
    """Files as Linux writes them, below a folder; counters in seconds."""

    def __init__(self, folder, *, cpus=4, cgroup="0::/\n"):
        self.proc, self.cgroups = folder / "proc", folder / "cgroup"
        (self.proc / "self").mkdir(parents=True)
        self.cgroups.mkdir()
        self.busy, self.idle, self.own = [0.0] * cpus, [0.0] * cpus, 0.0
        (self.proc / "self" / "cgroup").write_text(cgroup)
        self.write()

    def write(self, steal=0.0):
        rows = [
            f"cpu{i} {round(b * TICKS)} 0 0 {round(n * TICKS)} 0 0 0 {round(steal * TICKS)} 7 0"
            for i, (b, n) in enumerate(zip(self.busy, self.idle, strict=True))
        ]
        (self.proc / "stat").write_text("\n".join(["cpu  9 9 9 9", *rows, "intr 1 2 3", "ctxt 5"]) + "\n")
        fields = ["R", *["0"] * 10, str(round(self.own * TICKS)), "0", "0", "0"]
        (self.proc / "self" / "stat").write_text(f"4711 (a name) with) {' '.join(fields)}\n")

    def run(self, seconds, *, busy, own=0.0, steal=0.0):
        """Let time pass: `busy` cores of work on each CPU, of which this process did `own` cores in all."""
        for i, share in enumerate(busy):
            self.busy[i] += seconds * share
            self.idle[i] += seconds * (1 - share - steal)
        self.own += seconds * own
        self.write(steal=seconds * steal)

    def group(self, place, **files):
        folder = self.cgroups / place
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / name.replace("__", ".")).write_text(text)

    def machine(self, affinity=None):
        return Machine(proc=self.proc, cgroups=self.cgroups, affinity=affinity or set(range(len(self.busy))))


@pytest.mark.parametrize(
    ("busy", "own", "free"),
    [
        ([0, 0, 0, 0], 0, 4.0),
        ([1, 0, 0, 0], 0, 3.0),
        ([1, 1, 1, 1], 4, 4.0),  # all of it ours
        ([1, 1, 1, 1], 2.5, 2.5),
        ([1, 1, 1, 1], 0, 0.0),
    ],
)
def test_what_others_use_is_not_free(tmp_path: Path, busy, own, free) -> None:
    kernel = Kernel(tmp_path)
    machine = kernel.machine()
    before = machine.read()
    kernel.run(3, busy=busy, own=own)
    assert machine.free(before, machine.read()) == pytest.approx(free, abs=0.01)


def test_only_the_cpus_of_the_affinity_mask_count_and_stolen_time_is_not_free(tmp_path: Path) -> None:
    kernel = Kernel(tmp_path)
    machine = kernel.machine({2, 3})
    assert machine.cores == 2
    before = machine.read()
    kernel.run(2, busy=[1, 1, 0, 0], steal=0.25)
    assert machine.free(before, machine.read()) == pytest.approx(1.5, abs=0.01)


@pytest.mark.parametrize(
    ("line", "place", "files", "cores"),
    [
        ("0::/docker/ab\n", "docker/ab", {"cpu__max": "250000 100000\n"}, 3),
        ("0::/docker/ab\n", "docker", {"cpu__max": "100000 100000\n"}, 1),  # of a folder above
        ("0::/docker/ab\n", ".", {"cpu__max": "300000 100000\n"}, 3),  # in a container whose outer folders are hidden
        ("0::/a\n", "a", {"cpu__max": "max 100000\n"}, 4),
        ("0::/a\n", "a", {"cpu__max": "50000 100000\n"}, 1),
        (
            "3:cpuset:/x\n2:cpu,cpuacct:/x\n",
            "cpu,cpuacct/x",
            {"cpu.cfs_quota_us": "200000", "cpu.cfs_period_us": "100000"},
            2,
        ),
        ("2:cpu:/x\n", "cpu", {"cpu.cfs_quota_us": "200000", "cpu.cfs_period_us": "100000"}, 2),
        ("2:cpu:/x\n", "cpu/x", {"cpu.cfs_quota_us": "-1", "cpu.cfs_period_us": "100000"}, 4),
        ("2:cpu:/x\n", "cpu/x", {"cpu.cfs_quota_us": "nonsense", "cpu.cfs_period_us": "0"}, 4),
    ],
)
def test_quotas_of_both_versions_of_control_groups(tmp_path: Path, line, place, files, cores) -> None:
    kernel = Kernel(tmp_path, cgroup=line)
    kernel.group(place, **files)
    assert kernel.machine().cores == cores


@pytest.mark.parametrize("version", [1, 2])
def test_what_neighbours_in_the_container_use_counts_against_its_quota(tmp_path: Path, version) -> None:
    kernel = Kernel(tmp_path, cpus=8, cgroup="0::/box\n" if version == 2 else "4:cpu:/box\n5:cpuacct:/box\n")

    def used(seconds):
        if version == 2:
            kernel.group("box", cpu__max="200000 100000", cpu__stat=f"usage_usec {round(seconds * 1e6)}\nuser_usec 1\n")
        else:
            kernel.group("cpu/box", **{"cpu.cfs_quota_us": "200000", "cpu.cfs_period_us": "100000"})
            kernel.group("cpuacct/box", **{"cpuacct.usage": f"{round(seconds * 1e9)}\n"})

    used(0)
    machine = kernel.machine()
    before = machine.read()
    kernel.run(4, busy=[0.5, 0.5, 0.5, 0, 0, 0, 0, 0], own=0.5)
    used(4 * 1.5)
    assert machine.cores == 2
    assert machine.free(before, machine.read()) == pytest.approx(1.0, abs=0.02)


def test_without_counters_all_usable_cores_count_as_free(tmp_path: Path) -> None:
    machine = Machine(proc=tmp_path / "none", cgroups=tmp_path / "none", affinity={0, 1, 2})
    assert machine.read() is None and machine.free(None, None) is None
    assert machine.cores == free_cores(machine=machine) == 3


def test_this_kernel_is_read() -> None:
    machine = Machine()
    assert 1 <= machine.cores <= (os.cpu_count() or 1)
    assert 1 <= free_cores(seconds=0.05, machine=machine) <= machine.cores
