"""The start of a run: its initial parameters (new, trained, or kept from before) and data files.

The folder of a run that starts from trained parameters keeps them in ``initial.safetensors``.
``config.yaml`` records the SHA-256 of the given parameters and data files, so that others are
refused.
"""

import contextlib
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from egnn_jax import _weights
from egnn_jax.data import frames, storage
from egnn_jax.experiments import config as configs
from egnn_jax.experiments.config import Config
from egnn_jax.experiments.pretrained import find
from egnn_jax.training.callbacks import Callback, Progress
from egnn_jax.training.checkpoint import RunFolder
from egnn_jax.training.parameters import from_names, named

FORMAT = "egnn_jax.parameters"
_KEY = "initial_parameters"
_DATA = "data_files"


class Start(Callback):
    """A callback that provides the initial parameters of a run and keeps them in its folder.

    Args:
      config: the config of the run.
      run: its folder, new or with a run to resume.
      params: parameters from Python, or None.

    Attributes:
      config: the config of the run.
      settings: the config as plain values, with the SHA-256 of the given parameters and of the
        task's files.

    Raises:
      ValueError: ``params`` and ``config.init`` are both given, there is no such file or run, or
        the run was trained on a file that has changed.
    """

    def __init__(self, config: Config, run: RunFolder, params: Any) -> None:
        if params is not None and config.init is not None:
            raise ValueError(
                f"both params and config.init, {config.init!r}, are given; expected one of them"
            )
        self.config, self._params = config, params
        self._file = run.path / "initial.safetensors"
        self._to_keep: Any = None
        self._given: Mapping[str, Any] | None = None
        before = run.settings() if (run.path / "config.yaml").is_file() else None
        data = _same_files(config, run, before)
        recorded = before and before.get(_KEY)
        if params is not None:
            self._given = named(params)
        elif config.init is not None and (recorded is None or _exists(config.init)):
            self._given, model = weights_of(config.init)
            _warn_of_other_options(config, model)
        digest = recorded if self._given is None else _weights.digest(self._given)
        self.settings = configs.to_dict(config) | ({_KEY: digest} if digest else {}) | data

    def parameters(self, new: Callable[[Mapping[str, Any] | None], Any]) -> Any:
        """The initial parameters.

        Args:
          new: a function from trained arrays by name, or None, to initial parameters.

        Raises:
          ValueError: the parameters that the run started from no longer exist.
        """
        if _KEY not in self.settings:
            return new(None)
        if self._file.is_file():
            arrays, _ = _weights.read(self._file)
            like = new(None) if self._params is None else self._params
            try:
                return from_names(arrays, like)
            except ValueError as error:
                raise ValueError(f"{self._file}: {error}; delete the folder") from error
        if self._given is None:
            raise ValueError(
                f"{self._file} is not a file, and the run started from "
                f"{self.config.init or 'parameters'}; expected one of them to go on"
            )
        self._to_keep = new(self._given) if self._params is None else self._params
        return self._to_keep

    def started(self, progress: Progress) -> None:
        """Write the parameters that the run starts from."""
        if self._to_keep is not None:
            arrays = named(jax.device_get(self._to_keep))
            _weights.write(self._file, arrays, {"format": FORMAT})
            self._to_keep = None


def _same_files(config: Config, run: RunFolder, before: Mapping[str, Any] | None) -> dict[str, Any]:
    """The SHA-256 of the task's files, None for a file that is not there.

    Raises:
      ValueError: a run with the settings ``before`` was trained on other files, or on other
        contents.
    """
    if before is None:
        now = _digests(config)
        if None in now.values():  # for example frames, which are simulated with the samples
            config.task.samples("train")
            now = _digests(config)
        return {_DATA: now} if now else {}
    recorded = before.get(_DATA)
    _require_same(config, recorded, run.path)
    return {_DATA: recorded} if recorded else {}


def _digests(config: Config) -> dict[str, str | None]:
    found: dict[str, str | None] = dict.fromkeys(config.task.files)
    for name in found:
        with contextlib.suppress(ValueError):  # the file is gone, which is fine for a finished run
            found[name] = storage.digest(frames.find(name))
    return found


def _require_same(config: Config, recorded: Mapping[str, Any] | None, source: Path) -> None:
    if not recorded:  # a task without files, or a run of an older version
        return
    now = _digests(config)
    if recorded.keys() != now.keys():
        raise ValueError(
            f"{source} was trained on {', '.join(recorded)}, and {', '.join(now)} would be read "
            f"now; expected {', '.join(recorded)}, or another folder"
        )
    for name, digest in recorded.items():
        if None not in (digest, now[name]) and now[name] != digest:
            raise ValueError(
                f"{name} has changed since {source} was trained on it (its SHA-256 is not "
                f"{digest}); expected the same file, or another folder"
            )


def data_files(run: RunFolder) -> dict[str, Any]:
    """The names of the files that a run was trained on, and their SHA-256."""
    return run.settings().get(_DATA) or {}


def require_same_files(config: Config, source: Path | str) -> None:
    """Raise ValueError if files of the task have changed since a run, or an exported network, was
    trained on them.
    """
    source = find(source)
    if source.is_file():
        recorded = _weights.read(source)[1].get(_DATA)
    else:
        recorded = data_files(RunFolder(source))
    _require_same(config, recorded if isinstance(recorded, Mapping) else None, source)


def _exists(source: str) -> bool:
    try:
        find(source)
    except ValueError:
        return False
    return True


def weights_of(source: Path | str) -> tuple[dict[str, Any], Mapping[str, Any]]:
    """The parameters by name of an exported file or of the first seed of a run, and the options of
    the model.

    Raises:
      ValueError: there is no such file or run, or it is damaged.
    """
    from egnn_jax.experiments.run import load

    source = find(source)
    if source.is_dir():
        config, _, params = load(source)
        return named(first_seed(config, params)), configs.to_dict(config)["model"]
    arrays, metadata = _weights.read(source)
    settings = metadata.get("config")
    model = settings.get("model") if isinstance(settings, Mapping) else None
    return arrays, model if isinstance(model, Mapping) else {}


def _warn_of_other_options(config: Config, model: Mapping[str, Any]) -> None:
    """Warn if options of the model differ from those that its initial parameters had."""
    own = configs.to_dict(config)["model"]
    others = [name for name in own if own[name] != model.get(name, own[name])]
    if others:
        options = "; ".join(f"model.{name} is {own[name]}, not {model[name]}" for name in others)
        warnings.warn(
            f"other options than in the training of {config.init}: {options}", stacklevel=5
        )


def without_start(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a run that belong to its config, without those on its start."""
    return {name: value for name, value in settings.items() if name not in (_KEY, _DATA)}


def first_seed(config: Config, params: Any) -> Any:
    """The parameters of the first seed of a run with one or several seeds."""
    return params if config.seeds == 1 else jax.tree.map(lambda a: a[0], params)
