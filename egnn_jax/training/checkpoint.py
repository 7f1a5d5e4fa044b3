"""The folder of a run: config, metrics, checkpoints and result, each whole or absent."""

import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from egnn_jax.data.cache import write_atomically
from egnn_jax.experiments import config as configs
from egnn_jax.experiments.config import Config

_REMEDY = {
    "last": "delete that folder, and the same training command goes on from the checkpoint "
    "before it",
    "best": "delete that folder and result.json, and the same training command writes both again",
}


class RunFolder:
    """``config.yaml``, ``metrics.jsonl``, ``result.json`` and ``checkpoints/{last,best}`` of one
    run.

    Only :meth:`start` makes it writable, and then it has to be the only one that is.
    """

    def __init__(self, path: Path | str) -> None:
        self._writable = False
        self.path = Path(path).absolute()
        self.metrics_file = self.path / "metrics.jsonl"
        self.result_file = self.path / "result.json"
        self._config_file = self.path / "config.yaml"
        self._managers: dict[str, ocp.CheckpointManager] = {}

    def config(self) -> Config:
        """The config the run was started with.

        Raises:
          ValueError: this is no run's folder, or the file is damaged.
        """
        if not self._config_file.is_file():
            raise ValueError(f"{self.path} is no run: it has no config.yaml")
        return configs.load(self._config_file)

    def start(self, config: Config) -> None:
        """Make the folder, or see that it holds a run of the same config, to be resumed; from then
        on it may be written to.

        Raises:
          ValueError: it holds a run of another config; the differences are named.
        """
        if self._config_file.exists():
            before, now = (_flat(configs.to_dict(c)) for c in (self.config(), config))
            different = [
                f"{k} {before.get(k)!r} -> {now.get(k)!r}"
                for k in sorted(before | now)
                if before.get(k) != now.get(k)
            ]
            if different:
                raise ValueError(
                    f"{self.path} holds a run of another config ({', '.join(different)}); "
                    f"expected the same config to resume it, "
                    "another --run folder, or that one deleted"
                )
        else:
            write_atomically(self._config_file, configs.dump(config).encode())
        self._writable = True

    def save(self, kind: str, step: int, tree: Any) -> None:
        """Write a checkpoint and its checksum in the background; the one before stays until it is
        whole.
        """
        tree = jax.device_get(tree)
        self._manager(kind).save(
            step, args=ocp.args.StandardSave({"tree": tree, "sha256": self._checksum(tree)})
        )

    def wait(self) -> None:
        """Until the checkpoints being written are on disk."""
        for manager in self._managers.values():
            manager.wait_until_finished()

    def latest(self, kind: str) -> int | None:
        """The step of the newest whole checkpoint, or None."""
        return self._manager(kind).latest_step()

    def restore(self, kind: str, like: Any = None) -> Any:
        """The newest checkpoint as host arrays, with the structure, shapes and dtypes of ``like``;
        as dicts without it.

        Raises:
          ValueError: there is none, it cannot be read, or it does not match its checksum, which is
            also over the config; the path is named.
        """
        step = self.latest(kind)
        if step is None:
            raise ValueError(f"{self.path} has no checkpoint '{kind}'; train the run first")
        path = self.path / "checkpoints" / kind / str(step)
        try:
            abstract = (
                None
                if like is None
                else {"tree": jax.device_get(like), "sha256": np.zeros(32, np.uint8)}
            )
            saved = self._manager(kind).restore(step, args=ocp.args.StandardRestore(abstract))
            tree, expected = saved["tree"], saved["sha256"]
        except Exception as error:
            raise ValueError(f"{path} cannot be read ({error}); {_REMEDY[kind]}") from error
        if not np.array_equal(self._checksum(tree), expected):
            raise ValueError(
                f"{path} is damaged, or {self._config_file} was changed (their SHA-256 does "
                f"not match); undo what was changed, a comment "
                f"too, or else {_REMEDY[kind]}"
            )
        return tree

    def log(self, entry: dict[str, Any]) -> None:
        """Append a line to ``metrics.jsonl``."""
        with self.metrics_file.open("a") as file:
            file.write(json.dumps(entry) + "\n")

    def history(self) -> list[dict[str, Any]]:
        """The lines of ``metrics.jsonl``; a last line cut short by a kill is left out.

        Raises:
          ValueError: another line is damaged; it is named.
        """
        if not self.metrics_file.exists():
            return []
        lines = self.metrics_file.read_text(errors="replace").split("\n")
        return [
            _parse(line, f"{self.metrics_file}, line {k}")
            for k, line in enumerate(lines[:-1], 1)
            if line
        ]

    def rewind(self, step: int) -> list[dict[str, Any]]:
        """Drop what was logged after ``step``, which will be done again; returns what stays."""
        history = [entry for entry in self.history() if entry["step"] <= step]
        write_atomically(
            self.metrics_file, "".join(json.dumps(entry) + "\n" for entry in history).encode()
        )
        return history

    def finish(self, result: dict[str, Any]) -> None:
        """Write ``result.json``, which says that the run is complete."""
        write_atomically(self.result_file, (json.dumps(result, indent=2) + "\n").encode())

    def result(self) -> dict[str, Any]:
        """What :meth:`finish` wrote.

        Raises:
          ValueError: this is no run, it is not complete, or the file is damaged.
        """
        if not self.result_file.is_file():
            self.config()  # raises where this is no run at all
            raise ValueError(f"{self.path} has no result.json; the run is not complete")
        return _parse(self.result_file.read_text(errors="replace"), str(self.result_file))

    def close(self) -> None:
        """Wait for what is being written and free what it took."""
        for manager in self._managers.values():
            manager.close()
        self._managers.clear()

    def _checksum(self, tree: Any) -> np.ndarray:
        """SHA-256 (32,) of config.yaml and of every array with its name; the same for a tree
        restored as dicts.
        """
        leaves = {
            jax.tree_util.keystr(path, simple=True): np.asarray(leaf)
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        }
        digest = hashlib.sha256(
            self._config_file.read_bytes()
        )  # as it was written: options added since have defaults
        for name in sorted(leaves):
            digest.update(f"{name} {leaves[name].dtype} {leaves[name].shape} ".encode())
            digest.update(leaves[name].tobytes())
        return np.frombuffer(digest.digest(), np.uint8)

    def _manager(self, kind: str) -> ocp.CheckpointManager:
        if kind not in self._managers:
            # A reader leaves alone what a training under way is about to write.
            most = 2 if kind == "last" else 1
            options = ocp.CheckpointManagerOptions(
                max_to_keep=most, cleanup_tmp_directories=self._writable, create=self._writable
            )
            self._managers[kind] = ocp.CheckpointManager(
                self.path / "checkpoints" / kind, options=options
            )
        return self._managers[kind]


def _parse(text: str, where: str) -> dict[str, Any]:
    try:
        return dict(json.loads(text))
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{where} is damaged ({error}); delete it, and the same training command goes on"
        ) from error


def _flat(tree: dict[str, Any], where: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{where}{key}.") if isinstance(value, dict) else {where + key: value}
    return flat
