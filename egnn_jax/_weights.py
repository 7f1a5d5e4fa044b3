"""Reading and writing arrays and metadata as ``.safetensors`` files with a checksum.

A file is read only as numbers and JSON: nothing in it is executed, and the size of its header is
checked before it is parsed.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors import numpy as safetensors

from egnn_jax._files import finite, read_json, write_atomically

MAX_HEADER = 8_000_000
"""The largest header (names, shapes and metadata) that is read, in bytes."""
MAX_FILE = 8_000_000_000
"""The largest file that is read, in bytes."""

DTYPES = ("float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "bool")
"""The dtypes that arrays may have."""
_CHECKSUM = "sha256"


def write(path: Path, arrays: Mapping[str, Any], metadata: Mapping[str, Any]) -> None:
    """Write arrays and metadata atomically.

    Args:
      path: the file; an existing one is replaced.
      arrays: arrays by name.
      metadata: plain values by name, each of which becomes a JSON string.

    Raises:
      ValueError: an array is not finite, or its dtype is not one of :data:`DTYPES`.
    """
    # Unlike np.ascontiguousarray this keeps scalars scalars.
    host_arrays = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    _require_finite(host_arrays)
    texts = {key: json.dumps(finite(value), allow_nan=False) for key, value in metadata.items()}
    texts[_CHECKSUM] = json.dumps(_checksum(host_arrays, texts))
    write_atomically(path, safetensors.save(host_arrays, metadata=texts))


def read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read the arrays and the metadata of a file that :func:`write` wrote.

    Raises:
      ValueError: there is no such file, it is too large, damaged, truncated or of another kind, or
        an array is not finite; the message names the path.
    """
    try:
        if not path.is_file():
            raise ValueError("there is no such file")
        with path.open("rb") as file:
            header = _read_header(file, path.stat().st_size)
            file.seek(0)
            content = file.read(MAX_FILE + 1)
        texts = _metadata(header)
        checksum = texts.pop(_CHECKSUM, None)
        if checksum is None:
            raise ValueError("it has no checksum; expected a file that egnn_jax wrote")
        arrays = safetensors.load(content)
        if read_json(checksum) != _checksum(arrays, texts):
            raise ValueError(f"it is damaged: its SHA-256 is not {checksum[:80]}")
        _require_finite(arrays)
        return arrays, {key: read_json(text) for key, text in texts.items()}
    except (SafetensorError, KeyError, TypeError, OverflowError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: it cannot be read as safetensors ({error})") from error
    except (ValueError, OSError) as error:
        raise ValueError(f"{path}: {error}") from error


def digest(arrays: Mapping[str, Any]) -> str:
    """SHA-256 digest of names, dtypes, shapes and values, independent of the order of arrays."""
    sha256 = hashlib.sha256()
    for name in sorted(arrays):
        array = np.asarray(arrays[name])
        sha256.update(json.dumps([name, array.dtype.name, array.shape]).encode())
        sha256.update(array.tobytes())
    return sha256.hexdigest()


def _read_header(file: Any, size: int) -> bytes:
    if size > MAX_FILE:
        raise ValueError(f"it has {size:,} bytes; expected at most {MAX_FILE:,}")
    length = int.from_bytes(file.read(8), "little")
    if length > MAX_HEADER:
        raise ValueError(
            f"its header has {length:,} bytes; expected at most {MAX_HEADER:,}, as in a file that "
            "egnn export wrote"
        )
    if size < 8 or length > size - 8:
        raise ValueError(f"it has {size} bytes, less than its header says; it was cut short")
    return file.read(length)


def _metadata(header: bytes) -> dict[str, str]:
    parsed = read_json(header.decode())
    metadata = parsed.get("__metadata__") if isinstance(parsed, dict) else None
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise ValueError("it has no metadata; expected a file that egnn_jax wrote")
    return metadata


def _checksum(arrays: Mapping[str, np.ndarray], texts: Mapping[str, str]) -> str:
    metadata_text = json.dumps(dict(texts), sort_keys=True)
    return hashlib.sha256(f"{metadata_text} {digest(arrays)}".encode()).hexdigest()


def _require_finite(arrays: Mapping[str, np.ndarray]) -> None:
    for name, array in arrays.items():
        if array.dtype.name not in DTYPES:
            raise ValueError(f"{name} is of dtype {array.dtype}; expected one of {DTYPES}")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ValueError(f"{name} has a value that is not finite; expected finite numbers")
