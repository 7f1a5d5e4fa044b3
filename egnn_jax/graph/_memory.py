"""Memory checks before large graphs are allocated."""

import os
import warnings
from pathlib import Path

_WARNING_SIZE = 2**30
"""Larger allocations, in bytes, cause a warning."""


def require_memory(name: str, size: int) -> None:
    """Warn before an allocation of more than 1 GiB.

    Raises:
      ValueError: the allocation exceeds the machine's memory.
    """
    if size <= _WARNING_SIZE:
        return
    total = total_memory()
    if size > total:
        raise ValueError(f"{name} takes {_gb(size)}; expected at most {_gb(total)}, all there is")
    warnings.warn(f"{name} takes {_gb(size)} of the {_gb(total)} there are", stacklevel=4)


def total_memory() -> int:
    """The memory available to this process in bytes: the machine's or its container's limit."""
    limits = []
    if "SC_PHYS_PAGES" in getattr(os, "sysconf_names", {}):
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for filename in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            limits.append(int((Path("/sys/fs/cgroup") / filename).read_text(encoding="utf-8")))
        except (OSError, ValueError):  # no such limit
            continue
    return min(limits, default=2**63)


def _gb(size: int) -> str:
    return f"{size / 1e9:.3g} GB of memory"
