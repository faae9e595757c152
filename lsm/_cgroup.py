"""The CPU quota of this process from Linux cgroups, versions 1 and 2."""

import math
import re
from collections.abc import Iterator

from lsm._signals import reraise_from_handler


def cgroup_quota(proc: str = "/proc/self") -> int | None:
    """The lowest quota of the process's cgroup and its parents, in processors, at least 1; None if there is none."""
    try:
        mounts, memberships = _lines(f"{proc}/mountinfo"), _lines(f"{proc}/cgroup")
        quotas = [quota for folder in _folders(mounts, memberships) for quota in _quotas(folder)]
    except (OSError, ValueError) as error:  # not Linux, no /proc, or an unknown format
        reraise_from_handler(error)
        return None
    return max(1, math.ceil(min(quotas))) if quotas else None


def _lines(file: str) -> list[str]:
    with open(file, encoding="utf-8", errors="surrogateescape") as lines:  # noqa: PTH123 (importing pathlib takes 5 ms)
        return lines.read().splitlines()


def _folders(mounts: list[str], memberships: list[str]) -> Iterator[str]:
    """The directories of the process's cgroup and its parents, in each hierarchy that can limit processors."""
    for mount in mounts:
        # 32 31 0:29 /docker/x /sys/fs/cgroup/cpu rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
        fields, _, kind = mount.partition(" - ")
        root, folder = (_unescaped(field) for field in fields.split(" ")[3:5])
        if kind.startswith("cgroup2 "):
            controller = ""
        elif kind.startswith("cgroup ") and "cpu" in kind.rpartition(" ")[2].split(","):
            controller = "cpu"
        else:
            continue
        for membership in memberships:
            _, controllers, path = membership.split(":", 2)  # "3:cpu,cpuacct:/docker/x", in version 2 "0::/user.slice"
            if controller in controllers.split(","):
                inside = path.removeprefix(root.rstrip("/"))
                # A path outside the mount ("/..") belongs to a cgroup that is not visible: use the mount itself.
                parts = inside.strip("/").split("/") if path.startswith(root) and ".." not in inside else []
                yield from ("/".join((folder, *parts[:depth])) for depth in range(len(parts) + 1))


def _unescaped(field: str) -> str:
    """Decode a path in which the kernel has escaped characters as octal numbers."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)


def _quotas(folder: str) -> Iterator[float]:
    """The quota of one directory, in processors, if it has one."""
    for files in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        try:
            quota, period = map(int, " ".join(_lines(f"{folder}/{file}")[0] for file in files).split())
        except (OSError, ValueError, IndexError) as error:  # no such file; "max"
            reraise_from_handler(error)
            continue
        if quota > 0 and period > 0:  # -1: no limit
            yield quota / period
