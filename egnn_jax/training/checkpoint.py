"""The folder of a run: settings, metrics, checkpoints and result, each complete or absent."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import jax
import numpy as np

from egnn_jax._files import expanded, make_folder, read_yaml, with_nan, write_atomically, yaml_text
from egnn_jax.data.storage import sha256
from egnn_jax.training._folder_lock import acquire
from egnn_jax.training._records import (
    changes,
    digest,
    digest_of_arrays,
    json_line,
    parse,
    read_plain,
    write_plain,
)
from egnn_jax.training._validation import require_path
from egnn_jax.training.processes import from_first, is_first, require_same

_NUMERIC_FIELDS = ("metrics", "first_draw", "std", "seeds", "trivial")  # of result.json
_EARLIER = "earlier_epochs"
"""The key in config.yaml of the numbers of epochs that a run had before it was extended."""
_MISMATCH = "expected the optimizer and network of this run, or another folder"
_REMEDIES = {
    "last": "delete that folder, and the same command resumes from the checkpoint before it",
    "best": "delete that folder and result.json, and the same training command writes both again",
}


class RunFolder:
    """A run: ``config.yaml``, ``metrics.jsonl``, ``result.json``, ``checkpoints/{last,best}``.

    Any number of processes may read a run. The process that calls :meth:`start` becomes its only
    writer; in a job of several processes, this is process 0.
    """

    def __init__(self, path: Path | str) -> None:
        self._lock: IO[str] | None = None
        self._is_writer = False
        self.path = expanded(path).absolute()
        self.metrics_file = self.path / "metrics.jsonl"
        self.result_file = self.path / "result.json"
        self._settings_file = self.path / "config.yaml"
        self._managers: dict[str, Any] = {}

    def settings(self) -> dict[str, Any]:
        """The settings of the run, as plain values.

        Raises:
          ValueError: this is not the folder of a run, or the file is damaged.
        """
        return {name: value for name, value in self._read_settings().items() if name != _EARLIER}

    def _read_settings(self) -> dict[str, Any]:
        if not self._settings_file.is_file():
            raise ValueError(f"{self.path} is not a run: it has no config.yaml")
        try:
            settings = read_yaml(self._settings_file.read_text(encoding="utf-8"))
            if not isinstance(settings, dict):
                raise ValueError(f"it holds a {type(settings).__name__}; expected settings by name")
            if not all(isinstance(number, int) for number in settings.get(_EARLIER, [])):
                raise ValueError(f"{_EARLIER} is {settings[_EARLIER]}; expected whole numbers")
            return settings
        except (ValueError, TypeError) as error:
            raise ValueError(f"{self._settings_file}: {error}") from error

    def start(self, settings: dict[str, Any]) -> None:
        """Become the writer of a new folder, or of one with a run to resume with these settings.

        Raises:
          ValueError: another process is training here, the folder holds a run with other settings
            (the message lists the differences), or the folder cannot be written to.
        """
        from_first(lambda: self._start(settings))
        file = self._settings_file
        require_same({f"{file} (SHA-256)": file.is_file() and sha256(file)})
        self._is_writer = is_first()

    def _start(self, settings: dict[str, Any]) -> None:
        require_path(self.path)
        make_folder(self.path)
        self._lock = acquire(self.path)
        try:
            self._write_or_compare(settings)
        except BaseException:
            self.close()
            raise

    def _write_or_compare(self, settings: dict[str, Any]) -> None:
        if not self._settings_file.exists():
            write_atomically(self._settings_file, yaml_text(settings).encode())
        elif differences := changes(self.settings(), settings):
            text = ", ".join(f"{name} {old!r} -> {new!r}" for name, (old, new) in differences)
            raise ValueError(
                f"{self.path} holds a run of other settings ({text[:2_000]}); "
                "expected the same to resume it, another folder, or that one deleted"
            )

    def extend(self, epochs: int) -> None:
        """Set the ``epochs`` of an existing run; its checkpoints remain valid.

        Raises:
          ValueError: another process is training here, or this is not a run.
        """
        self._lock = acquire(self.path)
        try:
            settings = self._read_settings()
            settings[_EARLIER] = [*settings.get(_EARLIER, []), settings["epochs"]]
            settings["epochs"] = epochs
            text = yaml_text(settings)
            # First, since a result of other epochs is refused, and a run without one is resumed.
            self.result_file.unlink(missing_ok=True)
            write_atomically(self._settings_file, text.encode())
        finally:
            self.close()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Raise OSError with a one-sentence message if a checkpoint cannot be written."""
        try:
            yield
        except Exception as error:  # orbax passes on the exceptions of its file systems
            match = re.search(r"os_error_code='(\d+)'", str(error))
            errno = int(match[1]) if match else getattr(error, "errno", None)
            if errno is None:
                raise
            text = f"a checkpoint cannot be written ({os.strerror(errno)}); the last one is intact"
            raise OSError(errno, text, str(self.path / "checkpoints")) from error

    def save(self, kind: str, step: int, tree: Any) -> None:
        """Write a checkpoint and its checksum in the background; the previous one stays until then.

        Only process 0 may call this. The arrays are the same in all processes, and if several
        wrote, a failure of one would block the others.

        Args:
          kind: "last" or "best".
          step: the step number of the checkpoint.
          tree: the arrays to save.
        """
        tree = jax.device_get(tree)
        checkpoint = {"tree": tree, "sha256": self._checksum(tree, self.settings())}
        with self._writing():
            self._manager(kind).save(step, args=_orbax().args.StandardSave(checkpoint))

    def wait(self) -> None:
        """Wait until all pending checkpoints are on disk."""
        with self._writing():
            for manager in self._managers.values():
                manager.wait_until_finished()

    def latest(self, kind: str) -> int | None:
        """The step of the newest complete checkpoint, or None."""
        return self._manager(kind).latest_step()

    def restore(self, kind: str, like: Any = None) -> Any:
        """Restore the newest checkpoint as host arrays.

        Args:
          kind: "last" or "best".
          like: a tree of the structure, shapes and dtypes to restore; nested dicts if not given.

        Raises:
          ValueError: there is no checkpoint, it cannot be read, or it does not match its checksum,
            which also covers the settings; the message names the path.
        """
        failed_step = None
        while True:
            step = self.latest(kind)
            if step is None:
                raise ValueError(f"{self.path} has no checkpoint '{kind}'; train the run first")
            try:
                return self._restore(kind, step, like)
            except ValueError:
                if step == failed_step:  # otherwise, a concurrent run may have replaced it
                    raise
                failed_step = step
                self._manager(kind).reload()

    def log(self, entry: dict[str, Any]) -> None:
        """Append a line to ``metrics.jsonl``."""
        with self.metrics_file.open("a", encoding="utf-8") as file:
            file.write(json_line(entry))

    def history(self) -> list[dict[str, Any]]:
        """The entries of ``metrics.jsonl``, without a last line that a kill left incomplete.

        Raises:
          ValueError: another line is damaged; the message names it.
        """
        if not self.metrics_file.exists():
            return []
        lines = self.metrics_file.read_text(encoding="utf-8", errors="replace").split("\n")
        sources = {f"{self.metrics_file}, line {k}": line for k, line in enumerate(lines[:-1], 1)}
        return [with_nan(parse(line, source, {"step"})) for source, line in sources.items() if line]

    def rewind(self, step: int) -> list[dict[str, Any]]:
        """Drop the entries logged after ``step`` and return the others."""
        history = [entry for entry in self.history() if entry["step"] <= step]
        write_atomically(self.metrics_file, "".join(map(json_line, history)).encode())
        return history

    def finish(self, result: dict[str, Any]) -> None:
        """Write ``result.json``, which marks the run as complete."""
        write_plain(self.result_file, result)

    def result(self) -> dict[str, Any]:
        """Read what :meth:`finish` wrote.

        Raises:
          ValueError: this is not a run, it is not complete, or the file is damaged.
        """
        if not self.result_file.is_file():
            self.settings()  # raises if this is not a run
            raise ValueError(f"{self.path} has no result.json; the run is not complete")
        values = read_plain(self.result_file, {"metrics", "config"})
        return {k: with_nan(v) if k in _NUMERIC_FIELDS else v for k, v in values.items()}

    def close(self) -> None:
        """Wait for pending checkpoints, then release the lock so that others can write."""
        managers = list(self._managers.values())
        self._managers.clear()
        try:
            with self._writing():
                for manager in managers:
                    manager.close()
        finally:
            self._is_writer = False
            if self._lock is not None:
                self._lock.close()
                self._lock = None

    def _restore(self, kind: str, step: int, like: Any) -> Any:
        path = self.path / "checkpoints" / kind / str(step)
        try:
            abstract = None
            if like is not None:
                abstract = {"tree": jax.device_get(like), "sha256": np.zeros(32, np.uint8)}
            restore_args = _orbax().args.StandardRestore(abstract)
            checkpoint = self._manager(kind).restore(step, args=restore_args)
            tree, saved_checksum = checkpoint["tree"], checkpoint["sha256"]
        except Exception as error:
            remedy = _MISMATCH if "structures do not match" in str(error) else _REMEDIES[kind]
            raise ValueError(f"{path} cannot be read ({error}); {remedy}") from error
        checksums = (self._checksum(tree, settings) for settings in self._settings_so_far())
        if not any(np.array_equal(checksum, saved_checksum) for checksum in checksums):
            raise ValueError(
                f"{path} is damaged, or a setting in {self._settings_file} was changed (their "
                f"SHA-256 does not match); undo the change, or else {_REMEDIES[kind]}"
            )
        return tree

    def _settings_so_far(self) -> Iterator[dict[str, Any]]:
        """The current settings, then those before each extension of the run, newest first."""
        settings = self._read_settings()
        earlier_epochs = settings.pop(_EARLIER, [])
        yield settings
        for epochs in reversed(earlier_epochs):
            yield settings | {"epochs": epochs}

    def _checksum(self, tree: Any, settings: dict[str, Any]) -> np.ndarray:
        """SHA-256 (32,) of the settings and of the name and content of every array.

        A tree restored as dicts has the same checksum. Comments in config.yaml are ignored.
        """
        return np.frombuffer(digest_of_arrays(tree, digest(settings)), np.uint8)

    def _manager(self, kind: str) -> Any:
        if kind not in self._managers:
            ocp = _orbax()
            folder, rank = self.path / "checkpoints" / kind, jax.process_index()
            if self._is_writer:
                make_folder(folder)
            no_barriers = ocp.options.MultiprocessingOptions(
                primary_host=rank, active_processes={rank}, barrier_sync_key_prefix=f"{kind}{rank}"
            )
            options = ocp.CheckpointManagerOptions(
                max_to_keep=2 if kind == "last" else 1,
                # A reader must not remove what a concurrent run is about to write.
                cleanup_tmp_directories=self._is_writer,
                create=False,
                multiprocessing_options=no_barriers,
            )
            self._managers[kind] = ocp.CheckpointManager(folder, options=options)
        return self._managers[kind]


def _orbax() -> Any:
    """Import Orbax lazily: it takes a third of a second, and only checkpoints need it."""
    import orbax.checkpoint

    return orbax.checkpoint
