"""The optimizer of an experiment, built from plain options."""

import dataclasses
import functools
import inspect
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """An optax optimizer and its learning rate schedule.

    Args:
      name: "adam" (weight decay is added to the gradient, as in PyTorch), "adamw" (decoupled),
        "amsgrad" (as in PyTorch; optax corrects the bias of second moments before their maximum),
        or another optax optimizer that takes a learning rate, for example "lion".
      learning_rate: the peak learning rate.
      weight_decay: the factor of weight decay.
      schedule: "constant"; "cosine" or "exponential" decay from learning_rate to
        final · learning_rate over the run; or "plateau": half the rate whenever the training loss,
        averaged over an epoch, is no smaller than before for ``plateau_epochs`` epochs.
      final: the last learning rate of a decay, or the smallest after plateaus, as a share of the
        peak.
      plateau_epochs: see ``schedule``.
      half_periods: how often the cosine falls or rises; 3 matches the authors' QM9 code, which
        steps its schedule three times per epoch: down to 0 in the first third, up, and down again.
      warmup_epochs: first, increase the learning rate linearly from 0 over this many epochs.
      clip_norm: bound of the gradient's global norm; no bound if none.
    """

    name: str = "adam"
    learning_rate: float = 5e-4
    weight_decay: float = 0.0
    schedule: Literal["constant", "cosine", "exponential", "plateau"] = "constant"
    final: float = 0.0
    plateau_epochs: int = 5
    half_periods: int = 1
    warmup_epochs: float = 0.0
    clip_norm: float | None = None

    def __post_init__(self) -> None:
        """Raise ValueError if optax has no such optimizer, or the schedule does not use a value."""
        if not _takes_schedule(self.name):
            raise ValueError(
                f"optimizer.name is {self.name!r}; expected 'adam', 'adamw' or another optimizer "
                "of optax that takes a learning_rate, which may be a schedule"
            )
        is_exponential = self.schedule == "exponential"
        if not 0 <= self.final <= 1 or (is_exponential and self.final == 0):
            minimum = "above 0" if is_exponential else "0"
            raise ValueError(f"optimizer.final is {self.final}; expected {minimum} to 1")
        unused = {"final": (self.final, 0.0)} if self.schedule == "constant" else {}
        if self.schedule != "cosine":
            unused["half_periods"] = (self.half_periods, 1)
        if self.schedule != "plateau":
            unused["plateau_epochs"] = (self.plateau_epochs, 5)
        if self.plateau_epochs < 1:
            raise ValueError(
                f"optimizer.plateau_epochs is {self.plateau_epochs}; expected at least 1"
            )
        for name, (value, default) in unused.items():
            if value != default:
                raise ValueError(
                    f"optimizer.{name} is {value} where optimizer.schedule is {self.schedule!r}, "
                    f"which does not use it; expected {default}"
                )

    def build(self, steps_per_epoch: int, steps: int) -> optax.GradientTransformation:
        """Build the optax optimizer; its schedule counts optimizer steps.

        Args:
          steps_per_epoch: optimizer steps per epoch, for the warm-up.
          steps: optimizer steps of the whole run.
        """
        warmup_steps = round(self.warmup_epochs * steps_per_epoch)
        decay_steps = max(steps - warmup_steps, 1)
        if self.schedule == "cosine":
            frequency = math.pi * self.half_periods / decay_steps

            def cosine(step: Any) -> Any:
                decay = (1 + jnp.cos(frequency * jnp.minimum(step, steps - warmup_steps))) / 2
                return self.learning_rate * (self.final + (1 - self.final) * decay)

            rate: optax.Schedule = cosine
        elif self.schedule == "exponential":
            rate = optax.exponential_decay(self.learning_rate, decay_steps, self.final)
        else:
            rate = optax.constant_schedule(self.learning_rate)
        if warmup_steps:
            warmup = optax.linear_schedule(0.0, self.learning_rate, warmup_steps)
            rate = optax.join_schedules([warmup, rate], [warmup_steps])
        transforms = [] if self.clip_norm is None else [optax.clip_by_global_norm(self.clip_norm)]
        make_optimizer: Any = _amsgrad if self.name == "amsgrad" else getattr(optax, self.name)
        if "weight_decay" in _parameters(self.name):
            transforms.append(make_optimizer(rate, weight_decay=self.weight_decay))
        else:
            transforms += [optax.add_decayed_weights(self.weight_decay), make_optimizer(rate)]
        if self.schedule == "plateau":
            transforms.append(
                optax.contrib.reduce_on_plateau(
                    factor=0.5,
                    patience=self.plateau_epochs,
                    accumulation_size=steps_per_epoch,
                    min_scale=self.final,
                )
            )
        return optax.chain(*transforms)


def _amsgrad(rate: optax.Schedule) -> optax.GradientTransformation:
    """AMSGrad as in PyTorch and Keras: the step is rate · m̂ / √(max_t v / (1 - β₂ᵗ)).

    optax takes the maximum of v / (1 - β₂ᵗ), which always includes the squared gradient of the
    first step. One large gradient there would shorten all later steps.
    """
    beta = 0.999
    # expm1, since in float32 the difference 1 - βᵗ has few digits at first
    correction = lambda step: jnp.sqrt(-jnp.expm1((step + 1) * math.log(beta)))
    return optax.chain(
        optax.scale_by_amsgrad(b2=beta, bias_correction_nu=False),
        optax.scale_by_schedule(correction),
        optax.scale_by_learning_rate(rate),
    )


def _parameters(name: str) -> list[str]:
    function = getattr(optax, name, None) if name.isidentifier() else None
    return list(inspect.signature(function).parameters) if inspect.isfunction(function) else []


@functools.cache
def _takes_schedule(name: str) -> bool:
    """Whether optax has an optimizer of this name whose learning rate may be a schedule."""
    if "learning_rate" not in _parameters(name):
        return False
    try:
        optimizer = getattr(optax, name)(optax.constant_schedule(1.0))
        jax.eval_shape(optimizer.init, {"w": jax.ShapeDtypeStruct((1,), jnp.float32)})
    except TypeError:  # for example rprop, which needs a number
        return False
    return True
