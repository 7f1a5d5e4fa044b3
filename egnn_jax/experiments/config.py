"""What a run is made of: frozen dataclasses, read from strict YAML, overridden on the command
line.
"""

import dataclasses
import difflib
import math
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import flax.linen as nn
import tyro
import yaml

from egnn_jax.experiments import TASKS, Task
from egnn_jax.models import MODELS, MixedPrecision
from egnn_jax.nn.precision import ComputeDtype, MatmulPrecision


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """How parameters move.

    Args:
      name: "adam" (weight decay added to the gradient, as in PyTorch) or "adamw" (decoupled).
      learning_rate: the largest step size.
      weight_decay: its factor.
      schedule: "constant", or "cosine" from learning_rate to 0 over the run.
      half_periods: how often the cosine falls or rises; 3 is what the authors' QM9 code does, which
        steps its schedule three times an epoch: down to 0 at a third of the run, up and down again.
      warmup_epochs: rise linearly from 0 first.
      clip_norm: bound the gradient's global norm; no bound if none.
      average: decay per step of an exponential moving average of the parameters, which then is what
        is evaluated and kept; 0 for none.
    """

    name: Literal["adam", "adamw"] = "adam"
    learning_rate: float = 5e-4
    weight_decay: float = 0.0
    schedule: Literal["constant", "cosine"] = "constant"
    half_periods: int = 1
    warmup_epochs: float = 0.0
    clip_norm: float | None = None
    average: float = 0.0


@dataclasses.dataclass(frozen=True)
class Config:
    """One training run.

    Args:
      task: what is asked.
      model: what answers.
      optimizer: how parameters move.
      epochs: passes over the training split.
      batch_size: samples per step; the last partial batch of an epoch is dropped.
      micro_batches: on a CPU, compute the gradient of a batch in so many parts, one after the
        other: that takes less memory, and less time where a part fits the cache and the batch does
        not. Other devices take the batch at once.
      eval_every: epochs between two evaluations on the validation split.
      patience: stop after so many epochs without a better validation value; 0 for never.
      seed: of the initial parameters (and, for several seeds, of the first) and of the order of
        samples.
      seeds: train so many seeds at once, as one vmapped state.
      chunk_steps: at most so many steps in one compiled call.
      checkpoint_seconds: time between two checkpoints.
      compute_dtype: what the model's features and products are computed in, see
        :class:`egnn_jax.MixedPrecision`; parameters, coordinates, the task's readout or decoder,
        loss and optimiser stay in float32.
      matmul_precision: of the model; "default", or "high" or "highest" for more exact float32
        products on GPUs and TPUs.
    """

    task: Task
    model: Any
    optimizer: Optimizer = Optimizer()
    epochs: int = 100
    batch_size: int = 100
    micro_batches: int = 1
    eval_every: int = 5
    patience: int = 0
    seed: int = 0
    seeds: int = 1
    chunk_steps: int = 200
    checkpoint_seconds: float = 30.0
    compute_dtype: ComputeDtype = "float32"
    matmul_precision: MatmulPrecision = "default"

    def __post_init__(self) -> None:
        """Raises ValueError where an option has the wrong type or a number makes no sense."""
        parts: Any = {"task.": self.task, "model.": self.model, "optimizer.": self.optimizer}
        for where, part in parts.items():
            hints = get_type_hints(type(part))
            for field in dataclasses.fields(part):
                _convert(getattr(part, field.name), hints[field.name], f"{where}{field.name}")
        for name in ("epochs", "batch_size", "micro_batches", "eval_every", "seeds", "chunk_steps"):
            _check(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        expected = f"a divisor of {self.batch_size}, the batch_size"
        _check(
            self.batch_size % self.micro_batches == 0, "micro_batches", self.micro_batches, expected
        )
        for name in ("patience", "seed", "checkpoint_seconds"):
            _check(getattr(self, name) >= 0, name, getattr(self, name), "at least 0")
        shortest = f"0, or at least {self.eval_every}, the eval_every"
        _check(
            self.patience == 0 or self.patience >= self.eval_every,
            "patience",
            self.patience,
            shortest,
        )
        for name in ("learning_rate", "weight_decay", "warmup_epochs"):
            value = getattr(self.optimizer, name)
            _check(
                math.isfinite(value) and value >= 0,
                f"optimizer.{name}",
                value,
                "a finite number, at least 0",
            )
        _check(
            self.optimizer.half_periods >= 1,
            "optimizer.half_periods",
            self.optimizer.half_periods,
            "at least 1",
        )
        clip = self.optimizer.clip_norm
        _check(clip is None or clip > 0, "optimizer.clip_norm", clip, "above 0, or none")
        _check(
            0 <= self.optimizer.average < 1,
            "optimizer.average",
            self.optimizer.average,
            "0 to below 1",
        )


def build_model(config: Config) -> nn.Module:
    """The flax module that ``config.model`` describes, with the readout of the task."""
    model = MODELS[_name_of(config.model)](**dataclasses.asdict(config.model))
    if (config.compute_dtype, config.matmul_precision) != ("float32", "default"):
        model = MixedPrecision(model, config.compute_dtype, config.matmul_precision)
    return config.task.network(model)


def to_dict(config: Config) -> dict[str, Any]:
    """Plain values, as they stand in a YAML file; :func:`from_dict` inverts it."""
    plain = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    for part in ("task", "model"):
        plain[part] = {"name": _name_of(plain[part]), **_plain(plain[part])}
    return plain | {"optimizer": _plain(config.optimizer)}


def from_dict(plain: Any) -> Config:
    """A config from plain values.

    Raises:
      ValueError: a key is unknown (the nearest known one is named), a value has the wrong type, or
        task or model miss.
    """
    plain = dict(_mapping(plain, "the config"))
    parts = {}
    for part, choices in (("task", TASKS), ("model", MODELS)):
        options = dict(_mapping(plain.pop(part, None), part))
        name = options.pop("name", None)
        if name not in choices:
            raise ValueError(
                f"{part}.name is {name!r}; expected one of "
                f"{sorted(choices)}{_nearest(name, choices)}"
            )
        parts[part] = _build(_options(part, name), options, f"{part}.")
    optimizer = _build(Optimizer, _mapping(plain.pop("optimizer", {}), "optimizer"), "optimizer.")
    return _build(Config, plain, "", **parts, optimizer=optimizer)


def load(path: Path | str) -> Config:
    """A config from a YAML file.

    Raises:
      ValueError: there is no such file, or it is not such a config; the path is named.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} is no file; expected a config such as configs/nbody/egnn.yaml")
    try:
        return from_dict(yaml.safe_load(path.read_text()))
    except (yaml.YAMLError, UnicodeDecodeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def dump(config: Config) -> str:
    """The config as YAML text that :func:`from_dict` reads back."""
    return yaml.safe_dump(to_dict(config), sort_keys=False)


def override(config: Config, arguments: Sequence[str], program: str, description: str) -> Config:
    """The config changed by command-line flags such as ``--optimizer.learning-rate 1e-3``;
    ``--help`` shows all.
    """
    fields = [
        (
            field.name,
            type(value) if dataclasses.is_dataclass(value) else hint,
            dataclasses.field(default=value),
        )
        for field, hint in zip(
            dataclasses.fields(config), get_type_hints(Config).values(), strict=True
        )
        for value in [getattr(config, field.name)]
    ]
    flags = dataclasses.make_dataclass("Config", fields, frozen=True)
    flags.__doc__ = Config.__doc__
    parsed = tyro.cli(flags, args=list(arguments), prog=program, description=description)
    return Config(**{name: getattr(parsed, name) for name, *_ in fields})


def _plain(options: Any) -> dict[str, Any]:
    """The fields of a dataclass, tuples as the lists that YAML and JSON know."""
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in dataclasses.asdict(options).items()
    }


def _options(part: str, name: str) -> type:
    """The options of a task or model: a task is its own; a flax module's are its fields."""
    if part == "task":
        return TASKS[name]
    return _MODEL_OPTIONS[name]


def _module_options(module: type[nn.Module]) -> type:
    hints = get_type_hints(module)
    fields = [
        (field.name, hints[field.name], dataclasses.field(default=field.default))
        for field in dataclasses.fields(module)
        if field.name not in ("parent", "name")
    ]
    options = dataclasses.make_dataclass(module.__name__, fields, frozen=True)
    options.__doc__ = module.__doc__
    return options


_MODEL_OPTIONS = {name: _module_options(module) for name, module in MODELS.items()}


def _name_of(options: Any) -> str:
    known = {**{v: k for k, v in TASKS.items()}, **{v: k for k, v in _MODEL_OPTIONS.items()}}
    return known[type(options)]


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise ValueError(f"{where} is {value!r}; expected a mapping of names to values")
    return value


def _build(cls: Callable[..., Any], plain: dict[str, Any], where: str, **given: Any) -> Any:
    hints = get_type_hints(cls)
    known = [field.name for field in dataclasses.fields(cls) if field.name not in given]  # pyright: ignore[reportArgumentType]
    for key in plain:
        if key not in known:
            raise ValueError(
                f"{where}{key} is unknown; expected one of {sorted(known)}{_nearest(key, known)}"
            )
    return cls(
        **given,
        **{key: _convert(value, hints[key], f"{where}{key}") for key, value in plain.items()},
    )


def _convert(value: Any, hint: Any, where: str) -> Any:
    choices = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    for choice in choices:
        if choice is type(None) and value is None:
            return None
        if get_origin(choice) is Literal and value in get_args(choice):
            return value
        if choice in (bool, int, str) and type(value) is choice:
            return value
        if get_origin(choice) is tuple and isinstance(value, list | tuple):
            return tuple(
                _convert(entry, get_args(choice)[0], f"{where}[{k}]")
                for k, entry in enumerate(value)
            )
        if choice is float and not isinstance(value, bool) and isinstance(value, int | float | str):
            try:
                return float(value)  # YAML 1.1 reads 5e-4 as text
            except (ValueError, OverflowError):
                continue
    expected = " or ".join(
        "none"
        if c is type(None)
        else str(get_args(c))
        if get_origin(c) is Literal
        else "a list"
        if get_origin(c) is tuple
        else c.__name__
        for c in choices
    )
    raise ValueError(f"{where} is {value!r}; expected {expected}")


def _nearest(key: Any, known: Any) -> str:
    close = difflib.get_close_matches(str(key), list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _check(holds: bool, name: str, value: Any, expected: str) -> None:
    if not holds:
        raise ValueError(f"{name} is {value}; expected {expected}")
