"""Graph data sets on disk: one .npy file per array, and a manifest with sizes and checksums."""

import glob
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from egnn_jax._files import lock, make_folder, read_json
from egnn_jax.graph.graph import Edges, Globals, Nodes

MANIFEST = "manifest.json"
_FORMAT = "egnn_jax.GraphDataset"
_VERSION = 2
_LOCK = ".lock"
_BUFFER = 1 << 20
_TYPES = {"nodes": Nodes, "edges": Edges, "globals": Globals}


class Writer:
    """Writes arrays that grow by rows, each to its own file; see :func:`writing`.

    Attributes:
      about: plain values to store in the manifest, which :func:`about` reads.
    """

    def __init__(self, folder: Path) -> None:
        self.about: dict[str, Any] = {}
        self._folder, self._num_graphs = folder, 0
        self._layout: dict[str, Any] | None = None
        self._files: dict[str, _File] = {}

    def append(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Append the rows of one graph to each array, by name.

        Raises:
          ValueError: names, dtypes or row shapes differ from those of the first graph.
        """
        layout = {name: (array.dtype, array.shape[1:]) for name, array in arrays.items()}
        if self._layout is None:
            self._layout = layout
            for name, array in arrays.items():
                if array.dtype.kind == "V":  # for example bfloat16, which .npy does not support
                    raise ValueError(f"{name} is {array.dtype}; expected a dtype such as float32")
                self._files[name] = _File(self._folder / f"{name}.npy", array)
        if layout != self._layout:
            found = {
                name: f"{dtype} {shape}"
                for name, (dtype, shape) in layout.items()
                if (dtype, shape) != self._layout.get(name)
            }
            expected = {
                name: f"{dtype} {shape}"
                for name, (dtype, shape) in self._layout.items()
                if (dtype, shape) != layout.get(name)
            }
            raise ValueError(
                f"graph {self._num_graphs} carries {found}; expected {expected}, as graph 0"
            )
        for name, array in arrays.items():
            self._files[name].append(array)
        self._num_graphs += 1

    def finish(self) -> None:
        """Finish all files, and write the manifest last."""
        files = {file.path.name: file.finish() for file in self._files.values()}
        manifest = {"format": _FORMAT, "version": _VERSION, "about": self.about, "files": files}
        with (self._folder / MANIFEST).open("x", encoding="utf-8") as file:
            file.write(json.dumps(manifest, indent=2) + "\n")
            _sync(file)

    def close(self) -> None:
        """Close all files without finishing them."""
        for file in self._files.values():
            with suppress(OSError):  # flushing fails if the disk is full
                file.close()


class _File:
    """An .npy file whose number of rows is not known before the end."""

    def __init__(self, path: Path, like: np.ndarray) -> None:
        self.path = path
        self._dtype, self._row, self._rows = like.dtype, like.shape[1:], 0
        self._hash = hashlib.sha256()
        self._file = path.open("xb", buffering=_BUFFER)
        self.close = self._file.close
        self._header()
        self._start = self._file.tell()

    def append(self, rows: np.ndarray) -> None:
        content = np.ascontiguousarray(rows).reshape(-1).view(np.uint8).data
        self._hash.update(content)
        self._file.write(content)
        self._rows += len(rows)

    def finish(self) -> dict[str, Any]:
        size = self._file.tell()
        self._file.seek(0)
        self._header()
        if self._file.tell() != self._start:
            raise ValueError(f"{self.path} has no room for {self._rows} rows in its header")
        _sync(self._file)
        self._file.close()
        return {
            "bytes": size,
            "dtype": self._dtype.str,
            "shape": [self._rows, *self._row],
            "sha256": self._hash.hexdigest(),
        }

    def _header(self) -> None:
        # NumPy leaves room in the header for the number of rows to grow.
        descr = np.lib.format.dtype_to_descr(self._dtype)
        header = {"descr": descr, "fortran_order": False, "shape": (self._rows, *self._row)}
        np.lib.format.write_array_header_1_0(self._file, header)


@contextmanager
def writing(folder: Path) -> Iterator[Writer]:
    """Yield a writer of a new folder, which appears atomically at the end of the context.

    Until then, the data are in a folder ``.NAME.…`` next to it. If the process is killed, the next
    writer of the same name deletes it.

    Raises:
      ValueError: the folder exists.
      OSError: writing fails, for example because the disk is full; the error names the path.
    """
    if folder.exists():
        raise ValueError(f"{folder} exists; expected a new folder")
    make_folder(folder.parent)
    _remove_abandoned(folder)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    writer, lock_file = Writer(temporary), None
    try:
        lock_file = _locked(temporary)
        yield writer
        writer.finish()
        temporary.chmod(0o777 & ~_umask())
        _sync_folder(temporary)
        _rename(temporary, folder)
        (folder / _LOCK).unlink(missing_ok=True)
        _sync_folder(folder.parent)
    except BaseException as error:
        writer.close()
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError) and error.errno and not error.filename:  # disk is full
            raise OSError(error.errno, error.strerror, str(folder)) from error
        raise
    finally:
        if lock_file is not None:
            lock_file.close()


def read_arrays(folder: Path, verify: bool = False) -> dict[str, np.ndarray]:
    """Memory-map the arrays of a folder that :func:`writing` wrote.

    Raises:
      ValueError: this is not a data set, or a file is missing, has a wrong size or is damaged.
    """
    manifest = _manifest(folder)
    arrays = {}
    for name, expected in manifest["files"].items():
        path = folder / Path(name).name
        size = path.stat().st_size if path.is_file() else None
        if size != expected["bytes"]:
            raise ValueError(f"{path} has {size} bytes; expected {expected['bytes']}")
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise ValueError(f"{path} is damaged: {error}") from error
        header = [array.dtype.str, list(array.shape)]
        expected_header = [expected.get("dtype", header[0]), expected.get("shape", header[1])]
        if header != expected_header:
            raise ValueError(f"{path} is damaged: it has {header}; expected {expected_header}")
        # Version 1 of the format has checksums of whole files.
        start = 0 if manifest["version"] == 1 else size - array.nbytes
        if verify and sha256(path, start) != expected["sha256"]:
            raise ValueError(f"{path} is damaged: its SHA-256 is not that of {MANIFEST}")
        arrays[path.stem] = array
    _require_complete(folder, arrays)
    return arrays


def _require_complete(folder: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Raise ValueError if a required array is missing or has the wrong number of rows."""
    for name, count in (("nodes.x", "n_node"), ("senders", "n_edge"), ("receivers", "n_edge")):
        if missing := {name, count} - set(arrays):
            raise ValueError(f"{folder} is damaged: it has no {min(missing)}.npy")
        rows = arrays[count].sum(dtype=np.int64)
        if len(arrays[name]) != rows:
            raise ValueError(f"{folder} is damaged: {name} has not the {rows} rows of {count}")


def about(folder: Path) -> dict[str, Any]:
    """The plain values ``about`` that the writer of a folder stored.

    Raises:
      ValueError: this is not a data set.
    """
    return _manifest(folder).get("about", {})


def _manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest = read_json((folder / MANIFEST).read_text(encoding="utf-8"))
        if (manifest["format"], manifest["version"] in (1, _VERSION)) != (_FORMAT, True):
            raise ValueError(f"format {manifest['format']}, version {manifest['version']}")
        for entry in manifest["files"].values():
            _ = entry["bytes"] + 0, entry["sha256"] + ""
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder} holds no data set ({error!r}); expected {MANIFEST}") from error
    return manifest


def flatten(**trees: Any) -> dict[str, np.ndarray]:
    """The arrays of nodes, edges and globals, by names like ``nodes.x``."""
    return {
        f"{name}.{field}": array
        for name, tree in trees.items()
        for field, array in vars(tree).items()
        if array is not None
    }


def unflatten(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """The inverse of :func:`flatten`: nodes, edges and globals by name."""
    return {name: cls(**_fields(arrays, name, cls)) for name, cls in _TYPES.items()}


def _fields(arrays: dict[str, np.ndarray], name: str, cls: type) -> dict[str, Any]:
    field_names = cls.__dataclass_fields__
    return {field: arrays.get(f"{name}.{field}") for field in field_names}


def sha256(path: Path, start: int = 0) -> str:
    """The SHA-256 of a file from byte ``start`` on, in hexadecimal."""
    with path.open("rb") as file:
        file.seek(start)
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(path: Path) -> str:
    """The SHA-256 of a file, or of a folder's manifest, which contains those of its files."""
    return sha256(path / MANIFEST if path.is_dir() else path)


def _locked(folder: Path) -> Any:
    """Lock a folder until the lock is closed or the process ends; None if locks are unsupported."""
    file = (folder / "new").open("xb")
    if lock(file):
        (folder / "new").rename(folder / _LOCK)  # so that the file never exists unlocked
        return file
    (folder / "new").unlink()
    file.close()
    return None


def _remove_abandoned(folder: Path) -> None:
    """Delete temporary folders that killed writers of this folder left behind."""
    for path in folder.parent.glob(f".{glob.escape(folder.name)}.*/{_LOCK}"):
        with suppress(OSError), path.open("rb") as file:  # an active writer still holds its lock
            if lock(file):
                shutil.rmtree(path.parent, ignore_errors=True)


def _rename(temporary: Path, folder: Path) -> None:
    try:
        os.rename(temporary, folder)
    except OSError as error:
        if folder.exists():
            raise ValueError(f"{folder} exists; expected a new folder") from error
        raise


def _sync(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
