"""``fit``: train any parameters with any loss and data."""

import contextlib
import importlib.metadata
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.extend.core import ClosedJaxpr, Jaxpr

import egnn_jax
from egnn_jax.data.loader import Loader
from egnn_jax.graph._forks import require_usable_jax
from egnn_jax.training._records import changes, digest, digest_of_arrays
from egnn_jax.training._validation import (
    require_callbacks,
    require_optimizer,
    require_parameters,
    require_settings,
)
from egnn_jax.training.callbacks import Callback, EarlyStopping, MetricsLog, ProgressBar
from egnn_jax.training.checkpoint import RunFolder
from egnn_jax.training.distributed import freed_after_compiling
from egnn_jax.training.evaluation import Metrics, metrics_of
from egnn_jax.training.loop import Training
from egnn_jax.training.plan import FitResult, Plan
from egnn_jax.training.processes import exchanging, from_first, require_same
from egnn_jax.training.step import Loss, apply_optimizer


def fit(
    loss: Loss,
    params: Any,
    train: Loader,
    valid: Loader | None,
    optimizer: optax.GradientTransformation,
    *,
    epochs: int,
    metrics: Metrics | None = None,
    monitor: str = "loss",
    seed: int = 0,
    seeds: int = 1,
    ema_decay: float = 0.0,
    micro_batches: int = 1,
    eval_every: int = 1,
    chunk_steps: int = 200,
    checkpoint_seconds: float = 30.0,
    folder: Path | str | None = None,
    settings: Mapping[str, Any] | None = None,
    callbacks: Sequence[Callback] | None = None,
) -> FitResult:
    """Train parameters and return those with the smallest validation value.

    Up to ``chunk_steps`` steps run in one compiled call, and batches are packed while the devices
    compute. The order of samples and every random key depend only on the seeds, the step and the
    number of devices: if a run with a folder is stopped in any way, the same call resumes it and
    ends with the same numbers. The same call with more epochs extends the run, as if it had been
    started with them (apart from the evaluation at its former end), unless its learning rates
    depend on the number of epochs.

    In a job of several processes (``jax.distributed``), each calls this with the same arguments.
    Batches are sharded over all devices, each process packs its share, and only process 0 writes
    and calls callbacks. Several threads may train, but only one uses the devices at a time.

    Args:
      loss: (params, batch, key) -> (scalar, metrics), see :data:`egnn_jax.training.step.Loss`.
      params: initial parameters, for example ``model.init(key, graph)`` or trained ones; with
        several seeds they have a leading axis.
      train: batches to train on, for example ``dataset.loader(32)``.
      valid: samples to validate on, or None.
      optimizer: any optax gradient transformation.
      epochs: passes over the training samples; the last partial batch of each is dropped.
      metrics: (params, batch, key) -> metrics, evaluated on ``valid``; by default those of the
        loss, and its value as "loss".
      monitor: the metric whose smallest value selects the parameters.
      seed: seed of the random keys passed to the loss.
      seeds: how many runs to train at once, vmapped, with consecutive seeds from ``seed`` on.
      ema_decay: decay per step of an exponential moving average of the parameters, which is then
        evaluated and returned; 0 for none.
      micro_batches: on CPUs, compute the gradient of a batch sequentially in this many parts to
        save memory; a divisor of the batch size.
      eval_every: epochs between two evaluations.
      chunk_steps: the largest number of steps in one compiled call.
      checkpoint_seconds: time between two checkpoints.
      folder: folder for checkpoints and metrics; nothing is written if not given.
      settings: plain values that describe the run; a folder with other settings is refused. The
        default describes the arguments, including the programs that JAX traces from the loss, its
        gradient and the optimizer (compared only under the same JAX version). Among callbacks, it
        includes only early stopping; functions outside of JAX are not included.
      callbacks: see :class:`egnn_jax.Callback`; by default a progress bar. With a folder,
        ``metrics.jsonl`` is always written.

    Raises:
      ValueError: an argument is invalid, the loss returns something unexpected, the folder holds
        another run or is in use, or the processes were given different arguments.
      ConnectionError: another process was lost or has failed.
      FloatingPointError: a loss, the parameters or all validation values are not finite; the
        message names the step and the last good checkpoint.
      Interrupted: Ctrl-C, SIGTERM or SIGHUP; the state is saved if there is a folder.
    """
    require_usable_jax()
    require_optimizer(optimizer)
    plan = Plan(
        train=train,
        valid=valid,
        epochs=epochs,
        monitor=monitor,
        seed=seed,
        seeds=seeds,
        ema_decay=ema_decay,
        micro_batches=micro_batches,
        eval_every=eval_every,
        chunk_steps=chunk_steps,
        checkpoint_seconds=checkpoint_seconds,
    )
    run = None if folder is None else RunFolder(folder)
    if callbacks is None:
        callbacks = (ProgressBar(),)
    require_callbacks(callbacks)
    if valid is None and any(isinstance(c, EarlyStopping) for c in callbacks):
        raise ValueError("valid is None with EarlyStopping; expected samples to validate on")
    if valid is None and (monitor != "loss" or metrics is not None):
        raise ValueError("valid is None with monitor or metrics; expected samples to validate on")
    require_parameters(params, plan.seeds)
    if settings is not None:
        require_settings(settings)
    if run is not None and not any(isinstance(c, MetricsLog) for c in callbacks):
        callbacks = (MetricsLog(), *callbacks)  # the history of a resumed run comes from there
    if metrics is None:
        metrics = metrics_of(loss)
    with exchanging(), freed_after_compiling():
        training = Training(plan, loss, params, optimizer, metrics, run, callbacks)
        description: dict[str, Any] = {}
        if jax.process_count() > 1 or (run is not None and settings is None):
            description = _description(plan, loss, params, optimizer, metrics, callbacks, run)
        if jax.process_count() > 1:
            arguments = {"folder": run and str(run.path), "chunk_steps": int(plan.chunk_steps)}
            arguments |= {"versions": library_versions(), "settings": settings and dict(settings)}
            require_same(arguments | description)
        if run is None:
            return training.run()
        if settings is None:
            settings = description
            from_first(lambda: _extend(run, description))
        run.start(dict(settings))
        try:
            return training.run()
        finally:
            run.close()


def library_versions() -> dict[str, str]:
    """The versions of this library and of the packages that affect the numbers of a run."""
    packages = ("jax", "jaxlib", "flax", "optax", "jraph", "numpy")
    versions = {name: importlib.metadata.version(name) for name in packages}
    return {"egnn_jax": egnn_jax.__version__, **versions}


def _description(
    plan: Plan,
    loss: Loss,
    params: Any,
    optimizer: optax.GradientTransformation,
    metrics: Metrics,
    callbacks: Sequence[Callback],
    run: RunFolder | None,
) -> dict[str, Any]:
    """The default ``settings`` of :func:`fit`: a description that distinguishes runs."""
    initial_parameters = digest_of_arrays(params).hex()
    if plan.seeds > 1:
        params = jax.tree.map(lambda a: a[0], params)
    batch = jax.tree.map(lambda a: a[0, 0], plan.train.batches(0, 0, 1, 1))
    state = jax.eval_shape(optimizer.init, params)
    programs = {
        "jax": _tracing_conditions(),
        "loss": _program_digest(
            jax.value_and_grad(loss, has_aux=True), params, batch, jax.random.PRNGKey(0)
        ),
        "initial_optimizer": _program_digest(optimizer.init, params),
        "patience": [c.patience for c in callbacks if isinstance(c, EarlyStopping)],
        "optimizer": _program_digest(
            lambda value, gradient, state: apply_optimizer(
                optimizer, lambda _: (value, gradient), value, gradient, state, gradient
            ),
            jnp.zeros(()), params, state,
        ),
        "metrics": _program_digest(metrics, params, batch, jax.random.PRNGKey(0)),
    }  # fmt: skip
    with contextlib.suppress(ValueError):  # no run yet
        stored = programs if run is None else run.settings().get("compiled")
        if not isinstance(stored, dict) or stored.get("jax") != programs["jax"]:
            programs = stored  # other versions of JAX trace the same functions differently
    return {
        "compiled": programs,
        "loss": f"{getattr(loss, '__module__', '')}.{getattr(loss, '__qualname__', repr(loss))}",
        "initial_parameters": initial_parameters,
        "first_batch": digest_of_arrays(batch).hex(),
        "train": digest_of_samples(plan.train),
        "valid": None if plan.valid is None else digest_of_samples(plan.valid),
        "optimizer": _transformations(jax.eval_shape(optimizer.init, params)),
        "batch_size": plan.train.batch_size,
        "batches": plan.train.num_batches(0),
        "monitor": plan.monitor,
        "ema_decay": float(plan.ema_decay),
    } | {
        name: int(getattr(plan, name))
        for name in ("epochs", "seed", "seeds", "micro_batches", "eval_every")
    }


def digest_of_samples(loader: Loader) -> str:
    """SHA-256 digest of all samples of a loader."""
    digests = [
        digest_of_arrays(loader.batches(None, k, 1, 1)).hex()
        for k in range(loader.num_batches(None))
    ]
    remainder = loader.remainder() if hasattr(loader, "remainder") else None
    return digest([*digests, digest_of_arrays(remainder).hex()])


def _extend(run: RunFolder, settings: dict[str, Any]) -> None:
    """Extend the run of a folder to more epochs if everything else is known to be the same.

    Call it in one process: it reads the settings and writes them.
    """
    try:
        stored = run.settings()
    except ValueError:  # no run yet
        return
    programs, epochs = stored.get("compiled"), stored.get("epochs")
    comparable = isinstance(programs, dict) and programs.get("jax") == _tracing_conditions()
    comparable = comparable and isinstance(epochs, int)
    if comparable and [name for name, _ in changes(stored, settings)] == ["epochs"]:
        if settings["epochs"] < epochs:
            raise ValueError(
                f"{run.path} holds a run of {epochs} epochs; expected as many or more, not "
                f"{settings['epochs']}, or another folder"
            )
        run.extend(settings["epochs"])


def _tracing_conditions() -> str:
    """JAX's version and the float width: with others, the same functions have other jaxprs."""
    return f"{jax.__version__}, {8 * jnp.zeros(()).dtype.itemsize} bits, with gradients"


def _program_digest(function: Callable[..., Any], *args: Any) -> str:
    """SHA-256 digest of the jaxpr of a function, including its constants."""
    jaxpr = jax.make_jaxpr(function)(*args)
    text = re.sub(r"0x[0-9a-f]+", "", str(jaxpr.jaxpr))
    return digest_of_arrays(_constants(jaxpr), text).hex()


def _constants(value: Any) -> list[Any]:
    """The constant arrays in a jaxpr, including those of the functions it calls.

    Its equations have parameters of any type, some of which are jaxprs or lists of them.
    """
    if isinstance(value, ClosedJaxpr):
        is_key = [jnp.issubdtype(c.dtype, jax.dtypes.prng_key) for c in value.consts]
        arrays = [
            jax.random.key_data(constant) if key else constant
            for constant, key in zip(value.consts, is_key, strict=True)
        ]
        return arrays + _constants(value.jaxpr)
    if isinstance(value, Jaxpr):
        value = [list(equation.params.values()) for equation in value.eqns]
    if not isinstance(value, list | tuple):
        return []
    return [constant for item in value for constant in _constants(item)]


def _transformations(state: Any) -> str:
    """The gradient transformations that an optimizer chains, named by their states."""
    text = str(jax.tree.structure(state))
    names = re.findall(r"(\w+)State\b", text)
    return f"{', '.join(names)} ({len(jax.tree.leaves(state))} arrays)"
