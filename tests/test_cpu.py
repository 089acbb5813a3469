from __future__ import annotations

import os
from pathlib import Path

import pytest
from lcmem_onnx.runtime.system.cpu import cpu_features, cpu_limit, cpu_name, versions

ALLOWED = len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("max 100000", ALLOWED),
        ("100000 100000", 1),
        ("50000 100000", 1),
        ("6400000 100000", ALLOWED),
        ("garbage", ALLOWED),
    ],
)
def test_cgroup_v2_quota_limits_threads(tmp_path: Path, content: str, expected: int) -> None:
    (tmp_path / "cpu.max").write_text(content + "\n")
    assert cpu_limit(tmp_path) == expected


def test_cgroup_v1_quota_limits_threads(tmp_path: Path) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("100000\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert cpu_limit(tmp_path) == 1


@pytest.mark.parametrize(
    ("own", "limited", "quota"),
    [
        ("0::/system.slice/lcmem.service\n", "system.slice/lcmem.service", "cpu.max"),  # systemd's CPUQuota
        ("0::/system.slice/lcmem.service\n", "system.slice", "cpu.max"),  # a group above it
        ("3:cpuset:/\n2:cpu,cpuacct:/kube/pod\n0::/\n", "cpu/kube/pod", "v1"),
        ("2:cpu,cpuacct:/docker/0123\n", "cpu", "v1"),  # inside a container the host's path leads nowhere
        ("0::/../other\n", "", "cpu.max"),
    ],
)
def test_the_quota_of_the_own_group_and_of_those_above_counts(own: str, limited: str, quota: str, tmp_path: Path) -> None:
    groups = tmp_path / "cgroup"
    folder = groups / limited
    folder.mkdir(parents=True)
    (tmp_path / "own").write_text(own)
    if quota == "v1":
        (folder / "cpu.cfs_quota_us").write_text("100000\n")
        (folder / "cpu.cfs_period_us").write_text("100000\n")
    else:
        (folder / "cpu.max").write_text("100000 100000\n")
    assert cpu_limit(groups, tmp_path / "own") == 1
    other = "0::/somewhere/else\n1:cpu:/another\n"
    (tmp_path / "own").write_text(other)
    assert cpu_limit(groups, tmp_path / "own") == (1 if limited in ("", "cpu") else ALLOWED)


def test_a_cpuset_shows_as_affinity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {5}, raising=False)
    assert cpu_limit(tmp_path) == 1


def test_without_control_groups_the_affinity_counts(tmp_path: Path) -> None:
    assert cpu_limit(tmp_path) == ALLOWED


def test_cpu_features_are_read_from_the_flags(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor : 0\nmodel name : Test 9000\nflags : fpu avx2 f16c avx512_vnni\n")
    assert cpu_features(cpuinfo) == ["avx2", "f16c", "avx512_vnni"]
    assert cpu_name(cpuinfo) == "Test 9000"
    assert cpu_features(tmp_path / "nothing") is None


def test_versions_name_what_decides_results() -> None:
    assert {"python", "onnxruntime", "numpy", "hnswlib"} <= set(versions())
