"""The settings of an experiment: frozen dataclasses, read from strict YAML."""

import argparse
import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args, get_type_hints

import flax.linen as nn

from egnn_jax._extras import require
from egnn_jax._files import MAX_MESSAGE, expanded, read_yaml, yaml_text
from egnn_jax.experiments import _options
from egnn_jax.experiments.optimizer import Optimizer
from egnn_jax.experiments.task import Task
from egnn_jax.nn.precision import ComputeDtype, MatmulPrecision, MixedPrecision
from egnn_jax.registry import MODELS, TASKS
from egnn_jax.training._records import flat


@dataclasses.dataclass(frozen=True)
class Config:
    """One training run.

    Args:
      task: data, head and loss, see :class:`egnn_jax.Task`.
      model: the model, a flax module of the registry.
      optimizer: the optimizer and its schedule.
      epochs: passes over the training samples.
      batch_size: samples per step; the last partial batch of an epoch is dropped.
      ema_decay: decay per step of an exponential moving average of the parameters, which is then
        evaluated and kept; 0 for none.
      micro_batches: on CPUs, compute the gradient of a batch sequentially in this many parts: this
        saves memory, and time if a part fits into the cache and the batch does not.
      eval_every: epochs between two evaluations on the validation samples.
      patience: stop after this many epochs without a better validation value; 0 for never.
      seed: seed of the initial parameters, the order of samples and the random keys (with several
        seeds, the first one).
      seeds: how many seeds to train at once, as one vmapped state.
      chunk_steps: the largest number of steps in one compiled call.
      checkpoint_seconds: time between two checkpoints.
      compute_dtype: dtype of the model's features and products; parameters, coordinates, head, loss
        and optimizer stay in float32; see :class:`egnn_jax.MixedPrecision`.
      matmul_precision: precision of the model's float32 products on GPUs and TPUs; "default", or
        "high" or "highest" for more exact ones.
      init: start from the parameters of an exported ``.safetensors`` file, or of the first seed of
        a run's folder, matched by name; new parameters if none.
      init_skip: patterns of parameters that are new despite ``init``, for example ``graph_dec/*``
        for another number of targets.
      freeze: patterns of parameters to keep fixed, see :func:`egnn_jax.freeze`.
    """

    task: Task
    model: nn.Module
    optimizer: Optimizer = dataclasses.field(default_factory=Optimizer)
    epochs: int = 100
    batch_size: int = 100
    ema_decay: float = 0.0
    micro_batches: int = 1
    eval_every: int = 5
    patience: int = 0
    seed: int = 0
    seeds: int = 1
    chunk_steps: int = 200
    checkpoint_seconds: float = 30.0
    compute_dtype: ComputeDtype = "float32"
    matmul_precision: MatmulPrecision = "default"
    init: str | None = None
    init_skip: tuple[str, ...] = ()
    freeze: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raise ValueError if an option has the wrong type or is out of range."""
        TASKS.name_of(type(self.task))
        MODELS.name_of(type(self.model))
        for prefix, options in self._options_by_prefix().items():
            hints = _options.plain_hints(type(options))
            for name, hint in hints.items():
                value = getattr(options, name)
                converted = _options.convert(value, hint, f"{prefix}{name}")
                is_text = isinstance(value, str) and not isinstance(converted, str | None)
                _check(not is_text, f"{prefix}{name}", repr(value), f"the number {converted}")
        for name in ("epochs", "batch_size", "micro_batches", "eval_every", "seeds", "chunk_steps"):
            _check(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        divisor = f"a divisor of {self.batch_size}, the batch_size"
        divides = self.batch_size % self.micro_batches == 0
        _check(divides, "micro_batches", self.micro_batches, divisor)
        for name in ("patience", "checkpoint_seconds"):
            _check(getattr(self, name) >= 0, name, getattr(self, name), "at least 0")
        max_seed = 2**32 - self.seeds
        _check(0 <= self.seed <= max_seed, "seed", self.seed, f"0 to {max_seed}")
        expected = f"0, or at least {self.eval_every}, the eval_every"
        patience_valid = self.patience == 0 or self.patience >= self.eval_every
        _check(patience_valid, "patience", self.patience, expected)
        _check(0 <= self.ema_decay < 1, "ema_decay", self.ema_decay, "0 to below 1")
        _check(self.init != "", "init", repr(self.init), "a file, a run's folder or none")
        init_skip_valid = self.init is not None or not self.init_skip
        _check(init_skip_valid, "init_skip", self.init_skip, "no patterns where init is none")
        for name in ("learning_rate", "weight_decay", "warmup_epochs"):
            value = getattr(self.optimizer, name)
            is_finite = math.isfinite(value) and value >= 0
            _check(is_finite, f"optimizer.{name}", value, "a finite number, at least 0")
        half_periods, clip_norm = self.optimizer.half_periods, self.optimizer.clip_norm
        _check(half_periods >= 1, "optimizer.half_periods", half_periods, "at least 1")
        _check(
            clip_norm is None or clip_norm > 0, "optimizer.clip_norm", clip_norm, "above 0, or none"
        )

    def _options_by_prefix(self) -> dict[str, Any]:
        return {"task.": self.task, "model.": self.model, "optimizer.": self.optimizer, "": self}

    def network(self) -> nn.Module:
        """The flax module to train: the model with the task's head."""
        model = self.model.clone()
        if (self.compute_dtype, self.matmul_precision) != ("float32", "default"):
            model = MixedPrecision(model, self.compute_dtype, self.matmul_precision)
        return self.task.network(model)


def to_dict(config: Config) -> dict[str, Any]:
    """Convert a config to plain values, as in a YAML file; the inverse of :func:`from_dict`.

    Options of fine-tuning that are not used are left out.

    Raises:
      ValueError: an option is a Python object that YAML cannot represent, like a layer class.
    """
    plain = {name: getattr(config, name) for name in _options.plain_hints(Config)}
    for name in ("init", "init_skip", "freeze"):
        value = plain.pop(name)
        if value:
            plain[name] = list(value) if isinstance(value, tuple) else value
    task = {"name": TASKS.name_of(type(config.task))} | _options.to_plain(config.task, "task.")
    model = {"name": MODELS.name_of(type(config.model))} | _options.to_plain(config.model, "model.")
    optimizer = _options.to_plain(config.optimizer, "optimizer.")
    return {"task": task, "model": model, "optimizer": optimizer} | plain


def from_dict(plain: Any) -> Config:
    """Make a config from plain values.

    Raises:
      ValueError: a key is unknown (the message suggests the closest one), a value has the wrong
        type, or task or model is missing.
    """
    plain = dict(_options.mapping(plain, "the config"))
    task_and_model = {}
    for section in ("task", "model"):
        options = dict(_options.mapping(plain.pop(section, None), section))
        cls = _registered_class(section, options.pop("name", None))
        task_and_model[section] = _options.build(cls, options, f"{section}.")
    optimizer_options = _options.mapping(plain.pop("optimizer", {}), "optimizer")
    optimizer = _options.build(Optimizer, optimizer_options, "optimizer.")
    return _options.build(Config, plain, "", **task_and_model, optimizer=optimizer)


def _registered_class(section: str, name: Any) -> type:
    """The task or model class registered under a name."""
    registry = TASKS if section == "task" else MODELS
    if not isinstance(name, str) or name not in registry:
        suggestion = _options.nearest(name, registry)
        raise ValueError(
            f"{section}.name is {_options.short_repr(name)}; expected one of {sorted(registry)}, "
            f"or one that --plugin registers{suggestion}"
        )
    return registry[name]


def load(path: Path | str) -> Config:
    """Load a config from a YAML file, or from a recipe of this library, like ``nbody/egnn``.

    Raises:
      ValueError: there is no such file or recipe, or it is not a valid config (its path is named).
    """
    path = find(path)
    try:
        return from_dict(read_yaml(path.read_text(encoding="utf-8")))
    except (UnicodeDecodeError, ValueError, OSError) as error:
        raise ValueError(f"{path}: {str(error)[:MAX_MESSAGE]}") from error


def find(path: Path | str) -> Path:
    """The file of a config: the path itself, or a recipe included in this library."""
    file = expanded(path)
    if file.is_file():
        return file
    if file.is_dir():
        raise ValueError(f"{file} is a folder; expected a YAML file")
    yaml_path = file if file.suffix == ".yaml" else file.with_name(f"{file.name}.yaml")
    relative = Path(*yaml_path.parts[1:]) if yaml_path.parts[0] == "configs" else yaml_path
    if not yaml_path.is_absolute() and (recipe := recipes_folder() / relative).is_file():
        return recipe
    raise ValueError(
        f"{file} is not a file; expected a config, before any options, or a recipe: "
        f"{', '.join(recipes())}"
    )


def recipes() -> list[str]:
    """The names of the recipes included in this library."""
    folder = recipes_folder()
    return sorted(str(p.relative_to(folder).with_suffix("")) for p in folder.glob("*/*.yaml"))


def recipes_folder() -> Path:
    """The folder of the recipes: in the installed package, or next to it in a clone."""
    package = Path(__file__).parents[1]
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def dump(config: Config) -> str:
    """The config as YAML text that :func:`from_dict` reads back."""
    return yaml_text(to_dict(config))


def differences(config: Config, other: Config) -> dict[str, Any]:
    """The options of ``other`` whose values differ from those of ``config``, by names like
    ``task.dataset``.
    """
    before, after = (flat(to_dict(c)) for c in (config, other))
    # to_dict leaves out what is not used.
    names = dict.fromkeys([*after, *(name for name in before if name != "init_skip")])
    return {name: after.get(name) for name in names if before.get(name) != after.get(name)}


def override(config: Config, arguments: Sequence[str], program: str, description: str) -> Config:
    """Change a config by flags, for example ``--optimizer.learning-rate 1e-3``; see ``--help``.

    ``--model.name`` selects another model, in which options of the same name keep their values.
    Like other command-line parsers, this exits if a flag is unknown.

    Raises:
      ValueError: there is no such model.
    """
    require("tyro")
    import tyro

    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--model.name", dest="model")
    namespace, arguments = parser.parse_known_args(arguments)
    if namespace.model is not None:
        cls = _registered_class("model", namespace.model)
        options = _options.shared(config.model, cls)
        config = dataclasses.replace(config, model=_options.build(cls, options, "model."))
    hints = get_type_hints(Config)
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    sections = {
        name: _options.as_dataclass(values[name]) for name in ("task", "model", "optimizer")
    }
    fields = []
    for name, value in values.items():
        hint = type(sections[name]) if name in sections else hints[name]
        fields.append((name, hint, dataclasses.field(default=sections.get(name, value))))
    flags_class: Any = dataclasses.make_dataclass("Config", fields, frozen=True)
    lines = [f"  {name}: {text}" for name, text in _options.described(Config).items()]
    flags_class.__doc__ = "\n".join(["Options of a training.", "", "Args:", *lines])
    optional = {
        f"--{name}.{field}".replace("_", "-")
        for name in sections
        for field, hint in _options.plain_hints(type(values[name])).items()
        if type(None) in get_args(hint)
    }
    # tyro knows only None, but --init takes none, and the options' descriptions say none.
    arguments = [part for text in arguments for part in _flag_and_value(text)]
    pairs = zip(["", *arguments], arguments, strict=False)
    arguments = [
        "None" if x == "none" and flag.replace("_", "-") in optional else x for flag, x in pairs
    ]
    parsed = tyro.cli(flags_class, args=arguments, prog=program, description=description)
    new_values = {name: getattr(parsed, name) for name in values}
    for name in sections:
        options = {
            f.name: getattr(new_values[name], f.name) for f in dataclasses.fields(new_values[name])
        }
        new_values[name] = _options.replace(values[name], options)
    return Config(**new_values)


def _flag_and_value(text: str) -> list[str]:
    """``--flag=value`` as two arguments, and any other as it is."""
    return text.split("=", 1) if text.startswith("--") else [text]


def _check(is_valid: bool, name: str, value: Any, expected: str) -> None:
    if not is_valid:
        raise ValueError(f"{name} is {value}; expected {expected}")
