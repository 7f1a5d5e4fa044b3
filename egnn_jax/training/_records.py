"""Plain values and arrays of a run: their checksums, and reading them back."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from egnn_jax._files import write_atomically

_AGAIN = "delete it, and the same training command goes on"


def digest_of_arrays(tree: Any, start: str = "") -> bytes:
    """SHA-256 of a text and of every array of a tree with its name."""
    leaves = {
        jax.tree_util.keystr(path, simple=True): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
    digest = hashlib.sha256(start.encode())
    for name in sorted(leaves):
        digest.update(f"{name} {leaves[name].dtype} {leaves[name].shape} ".encode())
        digest.update(leaves[name].tobytes())
    return digest.digest()


def digest(plain: Any) -> str:
    """SHA-256 of plain values."""
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def parse(
    text: str,
    where: str,
    expected: set[str],
    remedy: str = _AGAIN,
    read: Callable[[str], Any] = json.loads,
) -> dict[str, Any]:
    """Values by name from JSON text.

    Raises:
      ValueError: it is no JSON, or one of the expected names is missing.
    """
    try:
        values = dict(read(text))
        if missing := expected - set(values):
            raise ValueError(f"{sorted(missing)[0]} is missing")
        return values
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{where} is damaged ({error}); {remedy}") from error


def write_plain(path: Path, plain: dict[str, Any]) -> None:
    """Write plain values by name as JSON, with their SHA-256."""
    checksum = digest(json.loads(json.dumps(plain)))  # as they are read back
    text = json.dumps(plain | {"sha256": checksum}, indent=2, ensure_ascii=False)
    write_atomically(path, (text + "\n").encode())


def read_plain(
    path: Path, expected: set[str], remedy: str = _AGAIN, read: Callable[[str], Any] = json.loads
) -> dict[str, Any]:
    """What :func:`write_plain` wrote, or an older version, without the SHA-256.

    Raises:
      ValueError: the file is damaged, or one of the expected names is missing.
    """
    text = path.read_text(encoding="utf-8", errors="replace")
    values = parse(text, str(path), expected, remedy, read)
    if (checksum := values.pop("sha256", None)) not in (None, digest(values)):
        raise ValueError(f"{path} is damaged: its SHA-256 is not {checksum}; {remedy}")
    return values


def changes(before: dict[str, Any], now: dict[str, Any]) -> list[tuple[str, tuple[Any, Any]]]:
    """The plain values that differ, before and now, by names such as ``task.dataset``."""
    before, now = flat(before), flat(now)
    values = {name: (before.get(name), now.get(name)) for name in sorted(before | now)}
    # As text, in which NaN is NaN.
    return [(name, pair) for name, pair in values.items() if len(set(map(_text, pair))) > 1]


def _text(plain: Any) -> str:
    return json.dumps(plain, sort_keys=True, default=str)


def flat(tree: dict[str, Any], where: str = "") -> dict[str, Any]:
    """Nested mappings as one, with names such as ``task.dataset``."""
    result = {}
    for key, value in tree.items():
        result |= flat(value, f"{where}{key}.") if isinstance(value, dict) else {where + key: value}
    return result
