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
_PARAMETERS_KEY = "initial_parameters"
_FILES_KEY = "data_files"


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
        self._unsaved_params: Any = None
        self._given_arrays: Mapping[str, Any] | None = None
        saved_settings = run.settings() if (run.path / "config.yaml").is_file() else None
        file_digests = _file_digests(config, run, saved_settings)
        recorded_digest = saved_settings and saved_settings.get(_PARAMETERS_KEY)
        if params is not None:
            self._given_arrays = named(params)
        elif config.init is not None and (recorded_digest is None or _exists(config.init)):
            self._given_arrays, model = weights_of(config.init)
            _warn_of_changed_options(config, model)
        digest = (
            recorded_digest if self._given_arrays is None else _weights.digest(self._given_arrays)
        )
        self.settings = (
            configs.to_dict(config) | ({_PARAMETERS_KEY: digest} if digest else {}) | file_digests
        )

    def parameters(self, init: Callable[[Mapping[str, Any] | None], Any]) -> Any:
        """The initial parameters.

        Args:
          init: a function from trained arrays by name, or None, to initial parameters.

        Raises:
          ValueError: the parameters that the run started from no longer exist.
        """
        if _PARAMETERS_KEY not in self.settings:
            return init(None)
        if self._file.is_file():
            arrays, _ = _weights.read(self._file)
            template = init(None) if self._params is None else self._params
            try:
                return from_names(arrays, template)
            except ValueError as error:
                raise ValueError(f"{self._file}: {error}; delete the folder") from error
        if self._given_arrays is None:
            raise ValueError(
                f"{self._file} is not a file, and the run started from "
                f"{self.config.init or 'parameters'}; expected one of them to go on"
            )
        self._unsaved_params = init(self._given_arrays) if self._params is None else self._params
        return self._unsaved_params

    def started(self, progress: Progress) -> None:
        """Write the parameters that the run starts from."""
        if self._unsaved_params is not None:
            arrays = named(jax.device_get(self._unsaved_params))
            _weights.write(self._file, arrays, {"format": FORMAT})
            self._unsaved_params = None


def _file_digests(
    config: Config, run: RunFolder, saved_settings: Mapping[str, Any] | None
) -> dict[str, Any]:
    """The entry of the run's settings with the SHA-256 of the task's files; None for a missing one.

    Raises:
      ValueError: the run with ``saved_settings`` was trained on other files, or other contents.
    """
    if saved_settings is None:
        digests = _current_digests(config)
        if None in digests.values():  # for example frames, which are simulated with the samples
            config.task.samples("train")
            digests = _current_digests(config)
        return {_FILES_KEY: digests} if digests else {}
    recorded = saved_settings.get(_FILES_KEY)
    _require_same_digests(config, recorded, run.path)
    return {_FILES_KEY: recorded} if recorded else {}


def _current_digests(config: Config) -> dict[str, str | None]:
    digests: dict[str, str | None] = dict.fromkeys(config.task.files)
    for name in digests:
        with contextlib.suppress(ValueError):  # the file is gone, which is fine for a finished run
            digests[name] = storage.digest(frames.find(name))
    return digests


def _require_same_digests(config: Config, recorded: Mapping[str, Any] | None, source: Path) -> None:
    if not recorded:  # a task without files, or a run of an older version
        return
    current = _current_digests(config)
    if recorded.keys() != current.keys():
        raise ValueError(
            f"{source} was trained on {', '.join(recorded)}, and {', '.join(current)} would be "
            f"read now; expected {', '.join(recorded)}, or another folder"
        )
    for name, digest in recorded.items():
        if None not in (digest, current[name]) and current[name] != digest:
            raise ValueError(
                f"{name} has changed since {source} was trained on it (its SHA-256 is not "
                f"{digest}); expected the same file, or another folder"
            )


def data_files(run: RunFolder) -> dict[str, Any]:
    """The names of the files that a run was trained on, and their SHA-256."""
    return run.settings().get(_FILES_KEY) or {}


def require_same_files(config: Config, source: Path | str) -> None:
    """Raise ValueError if files of the task have changed since a run, or an exported network, was
    trained on them.
    """
    source = find(source)
    if source.is_file():
        recorded = _weights.read(source)[1].get(_FILES_KEY)
    else:
        recorded = data_files(RunFolder(source))
    _require_same_digests(config, recorded if isinstance(recorded, Mapping) else None, source)


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


def _warn_of_changed_options(config: Config, model: Mapping[str, Any]) -> None:
    """Warn if options of the model differ from those that its initial parameters had."""
    options = configs.to_dict(config)["model"]
    changed = [name for name in options if options[name] != model.get(name, options[name])]
    if changed:
        changes = "; ".join(
            f"model.{name} is {options[name]}, not {model[name]}" for name in changed
        )
        warnings.warn(
            f"other options than in the training of {config.init}: {changes}", stacklevel=5
        )


def without_start(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a run that belong to its config, without those on its start."""
    return {
        name: value for name, value in settings.items() if name not in (_PARAMETERS_KEY, _FILES_KEY)
    }


def first_seed(config: Config, params: Any) -> Any:
    """The parameters of the first seed of a run with one or several seeds."""
    return params if config.seeds == 1 else jax.tree.map(lambda a: a[0], params)
