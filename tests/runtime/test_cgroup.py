"""Limits of this process, read from trees of files as kernels make them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from holdfast.domain.lifecycle.quota import Quota
from holdfast.runtime.cgroup import read_memory_limit, read_quota

V1 = "cgroup v1 cpu.cfs_quota_us"
V2 = "cgroup v2 cpu.max"
V2_MOUNT = "30 23 0:26 / /sys/fs/cgroup rw,nosuid,nodev - cgroup2 cgroup2 rw,nsdelegate"
V1_CPU = "33 32 0:29 {root} /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct"
V1_MEMORY = "34 32 0:30 {root} /sys/fs/cgroup/memory rw shared:9 - cgroup cgroup rw,memory"


class Kernel:
    """A tree of files below a directory."""

    def __init__(self, root: Path, groups: str, *mounts: str) -> None:
        self.root = root
        self.write("proc/self/cgroup", groups)
        other = "22 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw,errors=remount-ro"
        self.write("proc/self/mountinfo", "\n".join([other, *mounts, "garbage", ""]))

    def write(self, name: str, text: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def cpus(self, group: str, quota: str, period: str = "100000") -> None:
        base = f"sys/fs/cgroup/cpu,cpuacct{group}"
        self.write(f"{base}/cpu.cfs_quota_us", f"{quota}\n")
        self.write(f"{base}/cpu.cfs_period_us", f"{period}\n")

    def quota(self) -> Quota:
        return read_quota(self.root, affinity=8, machine=8)


def test_v2_in_a_container(tmp_path: Path) -> None:
    # With a namespace of its own the group is the root, and has the files all the same.
    kernel = Kernel(tmp_path, "0::/\n", V2_MOUNT)
    kernel.write("sys/fs/cgroup/cpu.max", "150000 100000\n")
    kernel.write("sys/fs/cgroup/memory.max", "536870912\n")
    assert kernel.quota() == Quota(1.5, V2, 8)
    assert read_memory_limit(tmp_path) == 536870912


def test_v2_the_smallest_on_the_way_up(tmp_path: Path) -> None:
    kernel = Kernel(tmp_path, "0::/kube/pod/container\n", V2_MOUNT)
    kernel.write("sys/fs/cgroup/kube/pod/container/cpu.max", "max 100000\n")
    kernel.write("sys/fs/cgroup/kube/pod/cpu.max", "50000 100000\n")
    kernel.write("sys/fs/cgroup/kube/cpu.max", "400000 100000\n")
    kernel.write("sys/fs/cgroup/kube/pod/container/memory.max", "max\n")
    kernel.write("sys/fs/cgroup/kube/pod/memory.max", "2000\n")
    kernel.write("sys/fs/cgroup/kube/memory.max", "3000\n")
    assert kernel.quota() == Quota(0.5, V2, 8)
    assert read_memory_limit(tmp_path) == 2000


def test_v2_without_a_quota(tmp_path: Path) -> None:
    kernel = Kernel(tmp_path, "0::/user.slice\n", V2_MOUNT)
    kernel.write("sys/fs/cgroup/user.slice/cpu.max", "max 100000\n")
    kernel.write("sys/fs/cgroup/user.slice/memory.max", "max\n")
    assert kernel.quota() == Quota(8.0, "", 8)
    assert read_memory_limit(tmp_path) is None


def test_v1_in_a_container_that_sees_the_path_of_the_host(tmp_path: Path) -> None:
    groups = "4:memory:/docker/abc\n2:cpu,cpuacct:/docker/abc\n1:name=systemd:/docker/abc\n"
    kernel = Kernel(
        tmp_path, groups, V1_CPU.format(root="/docker/abc"), V1_MEMORY.format(root="/docker/abc")
    )
    kernel.cpus("", "250000")
    kernel.write("sys/fs/cgroup/memory/memory.limit_in_bytes", "1048576\n")
    assert kernel.quota() == Quota(2.5, V1, 8)
    assert read_memory_limit(tmp_path) == 1048576


def test_v1_nested(tmp_path: Path) -> None:
    kernel = Kernel(tmp_path, "2:cpu,cpuacct:/a/b\n", V1_CPU.format(root="/"))
    kernel.cpus("/a/b", "-1")
    kernel.cpus("/a", "300000", "200000")
    assert kernel.quota() == Quota(1.5, V1, 8)


def test_v1_without_a_quota(tmp_path: Path) -> None:
    kernel = Kernel(tmp_path, "2:cpu,cpuacct:/\n4:memory:/\n", V1_CPU.format(root="/"))
    kernel.cpus("", "-1")
    kernel.write("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n")
    assert kernel.quota() == Quota(8.0, "", 8)
    assert read_memory_limit(tmp_path) is None


def test_both_versions(tmp_path: Path) -> None:
    # Hybrid: the processors are with version 1, and version 2 has none of them.
    v2 = "31 23 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw"
    kernel = Kernel(tmp_path, "2:cpu,cpuacct:/svc\n0::/svc\n", v2, V1_CPU.format(root="/"))
    kernel.write("sys/fs/cgroup/unified/svc/cgroup.procs", "1\n")
    kernel.cpus("/svc", "100000")
    assert kernel.quota() == Quota(1.0, V1, 8)
    # And where both say something, the smaller one counts.
    kernel.write("sys/fs/cgroup/unified/svc/cpu.max", "70000 100000\n")
    assert kernel.quota() == Quota(0.7, V2, 8)


@pytest.mark.parametrize("path", ["/../outside", "/elsewhere/x", "/docker/../../x"])
def test_a_group_that_is_not_below_what_is_mounted(tmp_path: Path, path: str) -> None:
    mount = V2_MOUNT.replace(" / /sys", " /docker /sys")
    kernel = Kernel(tmp_path, f"0::{path}\n", mount)
    kernel.write("sys/fs/cgroup/cpu.max", "200000 100000\n")
    assert kernel.quota() == Quota(2.0, V2, 8)


def test_a_mount_point_with_a_space(tmp_path: Path) -> None:
    kernel = Kernel(tmp_path, "0::/a\n", V2_MOUNT.replace("/sys/fs/cgroup", "/my\\040groups"))
    kernel.write("my groups/a/cpu.max", "200000 100000\n")
    assert kernel.quota() == Quota(2.0, V2, 8)


def test_what_makes_no_sense_is_no_limit(tmp_path: Path) -> None:
    kernel = Kernel(tmp_path, "0::/a\nno line\n::\n", V2_MOUNT)
    kernel.write("sys/fs/cgroup/a/cpu.max", "lots\n")
    kernel.write("sys/fs/cgroup/a/memory.max", "")
    kernel.write("sys/fs/cgroup/cpu.max", "300000 100000\n")
    assert kernel.quota() == Quota(3.0, V2, 8)
    assert read_memory_limit(tmp_path) is None
    (tmp_path / "sys/fs/cgroup/cpu.max").write_bytes(b"\xff\xfe\x00")
    assert kernel.quota() == Quota(8.0, "", 8)


def test_a_system_without_groups(tmp_path: Path) -> None:
    assert read_quota(tmp_path, affinity=4, machine=8) == Quota(4.0, "the CPU affinity", 8)
    assert read_memory_limit(tmp_path) is None


def test_this_machine() -> None:
    quota = read_quota()
    assert 0 < quota.cpus <= len(os.sched_getaffinity(0))
    assert quota.machine == os.cpu_count()
    limit = read_memory_limit()
    assert limit is None or limit > 0
