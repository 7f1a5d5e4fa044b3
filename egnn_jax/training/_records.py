"""Checksums of the plain values and arrays of a run, and reading them back."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from egnn_jax._files import finite, write_atomically

_RESUME_REMEDY = "delete it, and the same command resumes"


def digest_of_arrays(tree: Any, prefix: str = "") -> bytes:
    """SHA-256 digest of a prefix and of the names and contents of all arrays in a tree."""
    leaves = {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
    digest = hashlib.sha256(prefix.encode())
    for name in sorted(leaves):
        digest.update(f"{name} {leaves[name].dtype} {leaves[name].shape} ".encode())
        digest.update(leaves[name].tobytes())
    return digest.digest()


def digest(values: Any) -> str:
    """SHA-256 digest, in hexadecimal, of plain values serialized as JSON with sorted keys."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def parse(
    text: str,
    source: str,
    expected: set[str],
    remedy: str = _RESUME_REMEDY,
    read: Callable[[str], Any] = json.loads,
) -> dict[str, Any]:
    """Parse the JSON text of a source, such as a file, into values by name.

    Raises:
      ValueError: the text is not valid JSON, or one of the expected names is missing.
    """
    try:
        values = dict(read(text))
        if missing := expected - set(values):
            raise ValueError(f"{sorted(missing)[0]} is missing")
        return values
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{source} is damaged ({error}); {remedy}") from error


def json_line(values: dict[str, Any]) -> str:
    """Plain values by name as one line of JSON."""
    return f"{json.dumps(finite(values))}\n"


def write_plain(path: Path, values: dict[str, Any]) -> None:
    """Write plain values by name as JSON, together with their SHA-256 checksum."""
    values = finite(values)
    checksum = digest(json.loads(json.dumps(values)))  # with types as read back
    text = json.dumps(values | {"sha256": checksum}, indent=2, ensure_ascii=False)
    write_atomically(path, (text + "\n").encode())


def read_plain(
    path: Path,
    expected: set[str],
    remedy: str = _RESUME_REMEDY,
    read: Callable[[str], Any] = json.loads,
) -> dict[str, Any]:
    """Read what :func:`write_plain`, or an older version without a checksum, wrote.

    Raises:
      ValueError: the file is damaged, or one of the expected names is missing.
    """
    text = path.read_text(encoding="utf-8", errors="replace")
    values = parse(text, str(path), expected, remedy, read)
    if (checksum := values.pop("sha256", None)) not in (None, digest(values)):
        raise ValueError(f"{path} is damaged: its SHA-256 is not {checksum}; {remedy}")
    return values


def changes(old: dict[str, Any], new: dict[str, Any]) -> list[tuple[str, tuple[Any, Any]]]:
    """The names of plain values that differ, like ``task.dataset``, each with (old, new)."""
    old, new = flat(old), flat(new)
    pairs = {name: (old.get(name), new.get(name)) for name in sorted(old | new)}
    # Compared as text, in which NaN equals NaN.
    return [(name, pair) for name, pair in pairs.items() if len(set(map(_json_text, pair))) > 1]


def _json_text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested mappings into one, with names like ``task.dataset``."""
    result = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            result |= flat(value, f"{prefix}{key}.")
        else:
            result[prefix + key] = value
    return result
