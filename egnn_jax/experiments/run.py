"""Running experiments from a config: train in a folder, load, evaluate."""

import contextlib
import dataclasses
import platform
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from egnn_jax._files import expanded, read_json
from egnn_jax.data.loader import any_batch
from egnn_jax.experiments import config as configs
from egnn_jax.experiments import pretrained
from egnn_jax.experiments._requirements import require_trainable, samples
from egnn_jax.experiments.config import Config
from egnn_jax.experiments.extend import is_longer
from egnn_jax.experiments.outcome import judge
from egnn_jax.experiments.start import Start, first_seed, without_start
from egnn_jax.graph._forks import require_usable_jax
from egnn_jax.training._records import read_plain, write_plain
from egnn_jax.training.callbacks import Callback, EarlyStopping, MetricsLog, ProgressBar
from egnn_jax.training.checkpoint import RunFolder
from egnn_jax.training.distributed import batch_layout
from egnn_jax.training.evaluation import Evaluation, metrics_of
from egnn_jax.training.fit import digest_of_samples, fit, library_versions
from egnn_jax.training.parameters import freeze, transfer
from egnn_jax.training.processes import exchanging, from_first, require_same


@exchanging()
def train(
    config: Config,
    folder: Path | str,
    params: Any = None,
    callbacks: Sequence[Callback] = (),
) -> dict[str, Any]:
    """Train the model of a config, evaluate the best parameters, and write all to ``folder``.

    If the folder holds a complete run of this config, its result is returned; a stopped run is
    resumed. A run is extended if the config only has more epochs and a learning rate
    that does not depend on their number.

    Args:
      config: the config.
      folder: the folder of the run.
      params: initial parameters, instead of new ones or those of ``config.init``; with several
        seeds, with a leading axis. The folder keeps a copy, so that a resumed run needs neither
        these nor the file of ``config.init`` again, and refuses others.
      callbacks: callbacks in addition to the progress bar and ``metrics.jsonl``.

    Returns:
      The content of ``result.json``: ``metrics`` by split (the mean over seeds), ``best_epoch``,
      ``seconds``, ``config``, ``versions``, the entries of :func:`.outcome.judge`; with several
      seeds also ``std`` and ``seeds``.

    Raises:
      ValueError: parameters of ``config.init`` are missing, left over or misshapen, or a pattern
        of ``config.freeze`` or ``config.init_skip`` matches none.
      ValueError, FloatingPointError, Interrupted: as for :func:`egnn_jax.fit`.
    """
    require_trainable(config)
    run = RunFolder(folder)
    previous_config = None
    with contextlib.suppress(ValueError):  # no run yet, or an unrelated one
        previous_config = read_config(run)
    start = Start(config, run, params)
    if jax.process_count() > 1:  # before anything is written
        test_loader = samples(config, "test").loader(config.batch_size)
        settings = {"config": start.settings, "versions": versions()}
        require_same(settings | {"test samples (SHA-256)": digest_of_samples(test_loader)})
    is_extension = previous_config is not None and is_longer(run, previous_config, config)
    if not is_extension and from_first(run.result_file.exists):
        run.start(_settings(run, start))
        try:
            result = run.result()
        finally:
            run.close()
        if configs.from_dict(result["config"]) != config:
            raise ValueError(f"{run.result_file} is of another config; delete it to train again")
        return result
    task, network = config.task, config.network()
    micro_batches = batch_layout(config.batch_size, config.micro_batches)[1]
    train_loader = samples(config, "train").loader(config.batch_size, config.seed)
    valid_loader = samples(config, "valid").loader(config.batch_size // micro_batches)
    samples(config, "test")  # raises an error now rather than after the training
    graph = network_input(config)
    params = start.parameters(lambda arrays: initial_parameters(config, network, graph, arrays))
    steps_per_epoch = train_loader.num_batches(0)
    optimizer = config.optimizer.build(steps_per_epoch, config.epochs * steps_per_epoch)
    if config.freeze:
        optimizer = freeze(optimizer, config.freeze)
    early_stopping = [EarlyStopping(config.patience)] if config.patience else []
    if is_extension:  # after all that may fail, since this deletes the result
        from_first(lambda: run.extend(config.epochs))
    fit_result = fit(
        task.loss(network.apply),
        params,
        train_loader,
        valid_loader,
        optimizer,
        metrics=task.metrics(network.apply),
        monitor=task.metric,
        folder=folder,
        settings=_settings(run, start),
        callbacks=[
            ProgressBar(), MetricsLog(), _ConstantsWriter(config, graph), start, *early_stopping,
            *callbacks,
        ],
        **{
            name: getattr(config, name)
            for name in (
                "epochs", "seed", "seeds", "ema_decay", "micro_batches", "eval_every",
                "chunk_steps", "checkpoint_seconds",
            )
        },
    )  # fmt: skip
    results = summary(config, network, fit_result.params) | {
        "best_epoch": np.asarray(fit_result.best_epoch).tolist(),
        "seconds": round(fit_result.seconds, 1),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(fit_result.params)) // config.seeds,
        "config": configs.to_dict(config),
        "versions": versions(),
    }
    if details := config.task.details(network.apply, first_seed(config, fit_result.params)):
        results["details"] = details
    results |= judge(config, network, fit_result)
    run.start(_settings(run, start))  # refused if another process has extended the run meanwhile
    try:
        return from_first(lambda: run.finish(results) or results)
    finally:
        run.close()


def network_input(config: Config) -> Any:
    """Shapes and dtypes of the network's input for one batch of the samples."""
    batch = any_batch(config.task.samples("valid").loader(config.batch_size))
    return jax.eval_shape(config.task.graph, batch, jax.random.PRNGKey(0))


def initial_parameters(
    config: Config, network: nn.Module, graph: Any, arrays: Mapping[str, Any] | None = None
) -> Any:
    """Initialize parameters from the config's seed; several seeds add a leading axis.

    Args:
      config: the config of the run.
      network: the network to train.
      graph: the result of :func:`network_input`.
      arrays: trained parameters by name, which replace new ones except those of
        ``config.init_skip``, the same for all seeds.
    """
    params_of_seeds = []
    for k in range(config.seeds):
        key = jax.random.split(jax.random.PRNGKey(config.seed + k))[0]
        # lazy_init skips the forward pass, which takes time and memory.
        params = network.lazy_init(key, graph)
        params_of_seeds.append(
            params if arrays is None else transfer(arrays, params, config.init_skip)
        )
    if config.seeds == 1:
        return params_of_seeds[0]
    return jax.tree.map(lambda *a: jnp.stack(a), *params_of_seeds)


def read_config(run: RunFolder) -> Config:
    """Read the config of a run.

    Raises:
      ValueError: this is not a run, or its ``config.yaml`` is damaged; the message names the path.
    """
    settings = run.settings()
    try:
        return configs.from_dict(without_start(settings))
    except ValueError as error:
        raise ValueError(f"{run.path / 'config.yaml'}: {error}") from error


def load(path: Path | str) -> tuple[Config, nn.Module, Any]:
    """Load the config, the network and the best parameters of a run or of an exported file.

    The parameters have a leading axis if the run has several seeds. The config's task predicts
    without its data set.

    Raises:
      ValueError: there is no such run or file, it is damaged, or the run has no checkpoint yet.
    """
    require_usable_jax()
    path = expanded(path)
    if path.is_file() or path.suffix == ".safetensors":
        exported = pretrained.read(path)
        return exported.config, exported.network, exported.params
    run = RunFolder(path)
    try:
        config = read_config(run)
        with contextlib.suppress(ValueError):  # not complete
            pretrained.warn_of_explosion(run.path, run.result())
        constants = run.path / "constants.json"
        if constants.is_file():
            config = dataclasses.replace(
                config, task=read_stored(constants, config.task.with_constants)
            )
        params = run.restore("best")["params"]
        if not run.result_file.exists():
            warnings.warn(
                f"{run.path}: its training is not complete; these are the best parameters so far",
                stacklevel=2,
            )
        return config, config.network(), params
    finally:
        run.close()


def read_stored(path: Path, convert: Callable[[Any], Any]) -> Any:
    """Read plain values that a run stores next to its weights, and convert them.

    Raises:
      ValueError: the file is damaged; the message names it.
    """
    remedy = "delete it and result.json, and the same training command writes both again"
    plain = read_plain(path, set(), remedy, read_json)
    try:
        return convert(plain)
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); {remedy}") from error


def summary(config: Config, network: nn.Module, params: Any) -> dict[str, Any]:
    """Evaluate ``metrics`` on valid and test, averaged over the task's draws and over seeds.

    With several draws, also return ``first_draw``; with several seeds, ``std`` and ``seeds``.
    """
    task = config.task
    micro_batches = batch_layout(config.batch_size, config.micro_batches)[1]
    metrics = task.metrics(network.apply) or metrics_of(task.loss(network.apply))
    values_of_draws: dict[str, dict[str, np.ndarray]] = {}
    for split in ("valid", "test"):
        loader = task.samples(split).loader(config.batch_size // micro_batches)
        evaluate = Evaluation(metrics, loader, config.seeds, config.seed)
        draws = [evaluate(params, draw) for draw in range(task.draws)]
        values_of_draws[split] = {
            name: np.array([draw[name] for draw in draws], np.float64) for name in draws[0]
        }
    mean_values = _map_metrics(values_of_draws, lambda a: a.mean(axis=0))
    mean_over_seeds = lambda a: (a.mean(axis=0) if config.seeds > 1 else a).tolist()
    result = {"metrics": _map_metrics(mean_values, mean_over_seeds)}
    if task.draws > 1:
        result |= {"first_draw": _map_metrics(values_of_draws, lambda a: mean_over_seeds(a[0]))}
    if config.seeds > 1:
        result |= {"std": _map_metrics(mean_values, lambda a: a.std(axis=0, ddof=1).tolist())}
        result |= {"seeds": _map_metrics(mean_values, lambda a: a.tolist())}
    return result


def versions() -> dict[str, str]:
    """The versions and devices that, besides its config, affect the numbers of a run."""
    device = jax.devices()[0]
    return {
        "python": platform.python_version(),
        **library_versions(),
        "device": f"{device.platform} ({device.device_kind})",
        "devices": str(jax.device_count()),
    }


def _settings(run: RunFolder, start: Start) -> dict[str, Any]:
    """The settings of the run; a config already in the folder is kept as written if it is equal."""
    with contextlib.suppress(ValueError):  # no run yet, or an unrelated one
        if read_config(run) == start.config:
            return start.settings | without_start(run.settings())
    return start.settings


class _ConstantsWriter(Callback):
    """Write the data-dependent values that predictions need next to the weights."""

    def __init__(self, config: Config, graph: Any) -> None:
        self._task, self._graph = config.task, graph

    def started(self, progress: Any) -> None:
        files = {"constants.json": self._task.constants()}
        with contextlib.suppress(ValueError):  # a user's task may not train on graphs
            files["input.json"] = pretrained.describe(self._graph)
        for name, plain in files.items():
            if plain:
                write_plain(progress.folder / name, plain)


def _map_metrics(
    tree: dict[str, dict[str, np.ndarray]], f: Callable[[np.ndarray], Any]
) -> dict[str, dict[str, Any]]:
    return {
        split: {name: f(value) for name, value in metrics.items()}
        for split, metrics in tree.items()
    }
