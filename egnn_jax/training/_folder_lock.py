"""A lock that allows only one writer per folder."""

import os
from pathlib import Path
from typing import IO


def acquire(folder: Path) -> IO[str] | None:
    """Lock a folder until the returned file is closed or this process ends for any reason.

    Returns None if the system has no such locks.

    Raises:
      ValueError: another process holds the lock; the message names its process ID.
    """
    try:
        import fcntl
    except ImportError:  # not a POSIX system
        return None
    file = (folder / ".lock").open("a+", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.seek(0)
        owner = file.read().strip()
        file.close()
        raise ValueError(
            f"{folder} is being trained by process {owner or 'unknown'}; expected another folder, "
            "or that process to end first"
        ) from None
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    return file
