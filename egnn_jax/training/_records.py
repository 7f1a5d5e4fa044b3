"""Plain values and arrays of a run: their checksums, and reading them back."""

import hashlib
import json
from typing import Any

import jax
import numpy as np


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


def parse(text: str, where: str, expected: set[str]) -> dict[str, Any]:
    """Values by name from JSON text.

    Raises:
      ValueError: it is no JSON, or one of the expected names is missing.
    """
    try:
        values = dict(json.loads(text))
        if missing := expected - set(values):
            raise ValueError(f"{sorted(missing)[0]} is missing")
        return values
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{where} is damaged ({error}); delete it, and the same training command goes on"
        ) from error


def flat(tree: dict[str, Any], where: str = "") -> dict[str, Any]:
    """Nested mappings as one, with names such as ``task.dataset``."""
    result = {}
    for key, value in tree.items():
        result |= flat(value, f"{where}{key}.") if isinstance(value, dict) else {where + key: value}
    return result
