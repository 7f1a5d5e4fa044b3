"""A lock that allows only one writer per folder."""

import os
from pathlib import Path
from typing import IO

from egnn_jax._files import lock


def acquire(folder: Path) -> IO[str] | None:
    """Lock a folder until the returned file is closed or this process ends for any reason.

    Returns None if the system or the file system has no such locks.

    Raises:
      ValueError: another process holds the lock; the message names its process ID.
    """
    file = (folder / ".lock").open("a+", encoding="utf-8")
    try:
        locked = lock(file)
    except BlockingIOError:
        file.seek(0)
        owner = file.read().strip()
        file.close()
        raise ValueError(
            f"{folder} is being trained by process {owner or 'unknown'}; expected another folder, "
            "or that process to end first"
        ) from None
    if not locked:
        file.close()
        return None
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    return file
