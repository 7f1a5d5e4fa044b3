"""A disk cache of arrays that are slow to compute; damaged and incomplete files are detected."""

import hashlib
import io
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from egnn_jax._files import expanded, write_atomically


def default_folder() -> Path:
    """The folder of data sets: ``$EGNN_JAX_DATA``, or ``data`` in the working directory."""
    return expanded(os.environ.get("EGNN_JAX_DATA", "data"))


def cached_arrays(
    path: Path, build: Callable[[], Mapping[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """Load arrays from ``path`` (.npz) if they match the SHA-256 stored next to it; otherwise call
    ``build`` and store its arrays.

    The checksum is written last, so that a killed build leaves nothing that looks complete. A file
    that does not match is built again, with a warning.
    """
    checksum = path.with_name(path.name + ".sha256")
    if os.path.exists(path):  # also False if a folder on the path must not be entered
        content = _content(path, checksum)
        if content is not None:
            with np.load(io.BytesIO(content)) as arrays:
                return dict(arrays)
        warnings.warn(
            f"{path} is damaged or incomplete, or cannot be read (its SHA-256 does not match "
            f"{checksum.name}); building it again",
            stacklevel=2,
        )
    arrays = {name: np.asarray(array) for name, array in build().items()}
    buffer = io.BytesIO()
    # Not allow_pickle=False: before NumPy 2.2 that is one more array.
    np.savez_compressed(buffer, **dict[str, Any](arrays))
    try:
        checksum.unlink(missing_ok=True)
        write_atomically(path, buffer.getvalue())
        write_atomically(checksum, hashlib.sha256(buffer.getvalue()).hexdigest().encode() + b"\n")
    except (OSError, ValueError) as error:  # the arrays are still usable without a cache
        warnings.warn(
            f"{path} cannot be written ({error}); it will be built again next time", stacklevel=2
        )
    return arrays


def _content(path: Path, checksum: Path) -> bytes | None:
    """The bytes of a file, or None if they do not match the SHA-256 stored next to it."""
    try:
        content = path.read_bytes()
        expected = checksum.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return content if hashlib.sha256(content).hexdigest() == expected else None
