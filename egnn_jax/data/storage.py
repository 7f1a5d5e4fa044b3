"""Graph data sets on disk: one .npy file an array, and a manifest with sizes and checksums."""

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from egnn_jax.graph.graph import Edges, Globals, Nodes

MANIFEST = "manifest.json"
_TYPES = {"nodes": Nodes, "edges": Edges, "globals": Globals}


def write_arrays(arrays: dict[str, np.ndarray], folder: Path) -> None:
    """Write arrays to a new folder, whole or not at all.

    Raises:
      ValueError: the folder exists.
    """
    if folder.exists():
        raise ValueError(f"{folder} exists; expected a new folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        files = {}
        for name, array in arrays.items():
            path = temporary / f"{name}.npy"
            np.save(path, array, allow_pickle=False)
            files[path.name] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
        manifest = {"format": "egnn_jax.GraphDataset", "version": 1, "files": files}
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        temporary.chmod(0o777 & ~_umask())
        os.replace(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def read_arrays(folder: Path, verify: bool = False) -> dict[str, np.ndarray]:
    """The arrays of a folder that :func:`write_arrays` wrote, memory-mapped.

    Raises:
      ValueError: this is no such folder, or a file is missing, of another size or damaged.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files = dict(manifest["files"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder} holds no data set ({error!r}); expected {MANIFEST}") from error
    arrays = {}
    for name, expected in files.items():
        path = folder / Path(name).name
        size = path.stat().st_size if path.is_file() else None
        if size != expected["bytes"]:
            raise ValueError(f"{path} has {size} bytes; expected {expected['bytes']}")
        if verify and sha256(path) != expected["sha256"]:
            raise ValueError(f"{path} is damaged: its SHA-256 is not that of {MANIFEST}")
        arrays[path.stem] = np.load(path, mmap_mode="r", allow_pickle=False)
    return arrays


def flatten(**trees: Any) -> dict[str, np.ndarray]:
    """The arrays of nodes, edges and globals by names such as ``nodes.x``."""
    return {
        f"{part}.{field}": array
        for part, tree in trees.items()
        for field, array in vars(tree).items()
        if array is not None
    }


def unflatten(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """The inverse of :func:`flatten`: nodes, edges and globals by name."""
    return {part: kind(**_fields(arrays, part, kind)) for part, kind in _TYPES.items()}


def _fields(arrays: dict[str, np.ndarray], part: str, kind: type) -> dict[str, Any]:
    wanted = kind.__dataclass_fields__
    return {field: arrays.get(f"{part}.{field}") for field in wanted}


def sha256(path: Path) -> str:
    """That of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
