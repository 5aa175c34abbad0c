"""The memory of this machine that a process may take."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path


def free_host_memory(groups: Path = Path("/sys/fs/cgroup"), process: Path = Path("/proc/self")) -> int:
    """The bytes of memory that are free for this process and others like it.

    The least of what the machine has available and what is left in each control group with a limit that
    the process is in, such as a container's or a Slurm job's. Cached files count as free.
    """
    import psutil

    free: list[int] = [psutil.virtual_memory().available, *_left_in_groups(groups, process)]
    return max(0, min(free))


def _left_in_groups(groups: Path, process: Path) -> Iterator[int]:
    """The bytes left in each limited control group, of version 1 or 2 (the kernel's cgroups(7))."""
    try:
        lines = (process / "cgroup").read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            root, names, prefix = groups, ("memory.max", "memory.current"), ""
        elif "memory" in controllers.split(","):
            root, prefix = groups / "memory", "total_"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
        else:
            continue
        group = root / path.strip("/")
        for folder in (group, *group.parents):
            if not folder.is_relative_to(root):
                break
            try:
                limit, used = (int((folder / name).read_text()) for name in names)
                rows = (folder / "memory.stat").read_text().splitlines()
            except (OSError, ValueError):  # no such group here, or one without a limit
                continue
            cached = dict(row.split() for row in rows)
            yield (
                limit
                - used
                + sum(int(cached.get(f"{prefix}{kind}_file", 0)) for kind in ("active", "inactive"))
            )
