"""The machine: how many CPUs this process may really use, what they can compute, and which versions are installed."""

from __future__ import annotations

import math
import os
import platform
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

__all__ = ["CPU_FEATURES", "cpu_features", "cpu_limit", "cpu_name", "versions"]

CGROUP = Path("/sys/fs/cgroup")
OWN_GROUPS = Path("/proc/self/cgroup")
CPUINFO = Path("/proc/cpuinfo")
CPU_FEATURES = ("avx2", "f16c", "avx512f", "avx512_vnni", "avx_vnni", "avx512_fp16", "amx_int8", "amx_bf16")
"""What decides how fast which precision runs, by the names that Linux gives them."""
PACKAGES = ("onnxruntime", "onnxruntime-gpu", "numpy", "hnswlib", "opencv-python-headless", "pillow", "pydicom")


def cpu_limit(cgroup: Path = CGROUP, own: Path = OWN_GROUPS) -> int:
    """How many CPUs this process may use: its affinity (a cpuset shows there), further limited by a quota (cgroup v2 or v1).

    The quota is the smallest of those of the process's own group and all above it: a container's, or systemd's CPUQuota.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [quota for folder in _groups(cgroup, own) if (quota := _quota(folder))]
    return max(1, min(allowed, math.ceil(min(quotas)))) if quotas else allowed


def _groups(cgroup: Path, own: Path) -> Iterator[Path]:
    """Folders of this process's control groups, from the hierarchies' roots down. In a container the root is the container's."""
    try:
        lines = own.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    # Each line is a number, the controllers (none: version 2) and the group, as in "1:cpu,cpuacct:/docker/abc" or "0::/a.slice".
    paths = {}
    for line in lines:
        _, controllers, group = [*line.split(":", 2), "", ""][:3]
        if not controllers or "cpu" in controllers.split(","):
            paths["" if not controllers else "cpu"] = [part for part in group.split("/") if part]
    for hierarchy in ("", "cpu"):
        folder = cgroup / hierarchy
        yield folder
        for part in paths.get(hierarchy, []):
            if part == "..":  # a group outside this container
                break
            folder = folder / part
            yield folder


def _quota(group: Path) -> float | None:
    """CPUs' worth of time that one control group grants, or None without a limit."""
    try:
        if (group / "cpu.max").exists():
            quota, period = (group / "cpu.max").read_text().split()
        else:
            quota = (group / "cpu.cfs_quota_us").read_text().strip()
            period = (group / "cpu.cfs_period_us").read_text().strip()
        return None if quota in ("max", "-1") else float(quota) / float(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None  # no control group here, or not readable: then there is no limit that could be honoured


def cpu_features(cpuinfo: Path = CPUINFO) -> list[str] | None:
    """Which of `CPU_FEATURES` this processor has; None where the system does not say (other than Linux)."""
    flags = _cpuinfo(cpuinfo, "flags")
    return None if flags is None else [feature for feature in CPU_FEATURES if feature in flags.split()]


def cpu_name(cpuinfo: Path = CPUINFO) -> str:
    """The processor's name as the system gives it."""
    return _cpuinfo(cpuinfo, "model name") or platform.processor() or platform.machine()


def _cpuinfo(path: Path, field: str) -> str | None:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.split(":")[0].strip() == field), None)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide results, those that are installed."""
    found = {"python": sys.version.split()[0]}
    for package in ("lcmem-onnx", *PACKAGES):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
