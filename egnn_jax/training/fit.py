"""``fit``: epochs to chunks to scans, with evaluation, checkpoints and exact resume."""

import importlib.metadata
import math
import platform
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from tqdm_loggable.auto import tqdm

from egnn_jax.experiments import Task
from egnn_jax.experiments import config as configs
from egnn_jax.experiments.config import Config
from egnn_jax.training.checkpoint import RunFolder
from egnn_jax.training.evaluation import Evaluation, summary
from egnn_jax.training.state import init_best, init_state, keep_best, optimiser
from egnn_jax.training.step import AXIS, free_heaps, layout, make_step, make_train


class Interrupted(Exception):
    """Ctrl-C: the state was saved, and the same call continues."""


def fit(task: Task, model: nn.Module, config: Config, folder: Path | str) -> dict[str, Any]:
    """Train, evaluate the best on valid and test, and leave all of it in ``folder``.

    The order of samples and every random key follow from ``config.seed``, the step number and the
    number of devices alone, so that a run that was stopped, in whatever way, ends in the same
    numbers when it is called again on such a machine.

    Returns:
      What ``result.json`` holds: ``metrics`` by split (the mean over seeds), ``best_epoch``,
      ``seconds``, ``config``, ``versions``; with several seeds also ``std`` and the ``seeds``' own
      values.

    Raises:
      ValueError: the folder holds another run, or the training split is smaller than a batch.
      FloatingPointError: a loss or the parameters are not finite; the step, the batch and the last
        good checkpoint are named. Or the validation value never was.
      Interrupted: Ctrl-C.
    """
    size = task.size("train")
    if size < config.batch_size:
        raise ValueError(
            f"batch_size is {config.batch_size}; expected at most {size}, the samples to train on"
        )
    run = RunFolder(folder)
    if run.result_file.exists():
        run.start(config)
        return run.result()
    loop = _Loop(
        task, model, config, run
    )  # whatever is wrong with task or model shows here, before anything is written
    run.start(config)
    try:
        return loop.fit()
    finally:
        run.close()


def load(folder: Path | str) -> tuple[Config, nn.Module, Any]:
    """The config, the model and the best parameters of a run (with a leading axis where it has
    several seeds).

    Raises:
      ValueError: this is no run, or it has no whole checkpoint yet.
    """
    run = RunFolder(folder)
    config = run.config()
    try:
        return config, configs.build_model(config), run.restore("best")["params"]
    finally:
        run.close()


def first_seed(config: Config, params: Any) -> Any:
    """The parameters of the first seed, of a run of one or several."""
    return params if config.seeds == 1 else jax.tree.map(lambda a: a[0], params)


class _Loop:
    def __init__(self, task: Task, model: nn.Module, config: Config, run: RunFolder) -> None:
        self.task, self.config, self.run = task, config, run
        self.per_epoch = task.size("train") // config.batch_size
        self.total = config.epochs * self.per_epoch
        self.interval = min(config.eval_every, config.epochs) * self.per_epoch
        most = min(config.chunk_steps, self.interval)
        even = max(d for d in range(1, most + 1) if math.gcd(self.interval, self.total) % d == 0)
        # One length of scan is compiled where a fair divisor allows; short scans waste time in
        # getting their memory.
        self.chunk = even if 2 * even > most else most
        transform = optimiser(config.optimizer, self.per_epoch, self.total)
        graph = task.graph(
            task.pack("valid", np.zeros(config.batch_size, int)), jax.random.PRNGKey(0)
        )
        states = [
            init_state(model, graph, transform, config.optimizer.average > 0, config.seed + k)
            for k in range(config.seeds)
        ]
        mesh, parts = layout(config)
        state = (
            states[0]
            if config.seeds == 1
            else jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
        )
        self.groups, self.spread = mesh.size * parts, NamedSharding(mesh, PartitionSpec(None, AXIS))
        self.everywhere = NamedSharding(mesh, PartitionSpec())
        self.state, self.best = jax.device_put((state, init_best(state)), self.everywhere)
        step = make_step(task, model.apply, transform, config.optimizer.average, mesh, parts)
        self.train = make_train(step, config.seeds, mesh)
        self.evaluate = Evaluation(task, model, config)
        self.keep_best = jax.jit(
            keep_best if config.seeds == 1 else jax.vmap(keep_best, in_axes=(0, 0, 0, None))
        )
        self.saved_best = 0
        self.loss = np.zeros(config.seeds)  # the sum since the last evaluation
        self.started = time.monotonic()

    def fit(self) -> dict[str, Any]:
        step = self._resume()
        saved = time.monotonic()
        bar = tqdm(total=self.total, initial=step, unit="step", desc=self.run.path.name)
        with bar, _interruptible() as interrupted:
            batches = self._pack(step)
            while step < self.total and not self._stale(step):
                self.state, losses = self.train(self.state, batches)
                previous, step = step, self._end(step)
                batches = self._pack(step)  # while the device computes
                losses = np.atleast_2d(np.asarray(losses, np.float64))
                self._check_finite(losses, previous)
                self.loss = self.loss + losses.sum(axis=1)
                bar.update(step - previous)
                if step % self.interval == 0 or step == self.total:
                    self._evaluate(bar, step)
                stop = interrupted.is_set()
                if stop or time.monotonic() - saved > self.config.checkpoint_seconds:
                    self._save(step)
                    saved = time.monotonic()
                if stop:
                    self.run.wait()
                    raise Interrupted(
                        f"stopped at step {step:,} of {self.total:,}; the same command "
                        f"continues from there"
                    )
        self._save(step)
        return self._finish()

    @property
    def seconds(self) -> float:
        """How long the run has taken, in all the processes it took."""
        return time.monotonic() - self.started

    def _evaluate(self, bar: Any, step: int) -> None:
        """Keep the best parameters as of ``step``, which ends an evaluation interval, and log
        it.
        """
        metrics = self.evaluate(self.state.evaluated, "valid")
        self.best = self.keep_best(
            self.best, self.state, metrics[self.task.metric], step // self.per_epoch
        )
        self._log(bar, step, self.loss / ((step - 1) % self.interval + 1), metrics)
        self.loss = np.zeros_like(self.loss)

    def _resume(self) -> int:
        """The step to go on from, with everything else as it was there."""
        step = self.run.latest("last")
        if step is None:
            self.run.rewind(-1)
            return 0
        tree = self.run.restore("last", self._saved())
        self.state, self.best = jax.device_put((tree["state"], tree["best"]), self.everywhere)
        self.loss, self.started = tree["loss"], time.monotonic() - float(tree["seconds"])
        self.run.rewind(step)
        return step

    def _saved(self) -> dict[str, Any]:
        return {
            "state": self.state,
            "best": self.best,
            "loss": self.loss,
            "seconds": np.array(self.seconds),
        }

    def _save(self, step: int) -> None:
        """Both checkpoints as of ``step``, which ends a chunk."""
        if self.run.latest("last") != step:
            if not all(
                np.isfinite(leaf).all()
                for leaf in jax.tree.leaves(jax.device_get(self.state.params))
            ):
                raise FloatingPointError(
                    f"the parameters are not finite after step {step}; {self._last_good()}"
                )
            self.run.save("last", step, self._saved())
        best = int(np.max(self.best.epoch))
        if best != self.saved_best and (self.run.latest("best") or -1) < step:
            self.run.save("best", step, self.best)
            self.saved_best = best
        free_heaps()  # of compilations, evaluations and checkpoints

    def _end(self, step: int) -> int:
        """Where the chunk that begins at ``step`` ends; none goes beyond an evaluation."""
        return min(step + self.chunk, step - step % self.interval + self.interval, self.total)

    def _pack(self, step: int) -> Any:
        """The batches of the chunk from ``step`` on, None at the end; each epoch has its own order
        of samples.
        """
        if step == self.total:
            return None
        count = self._end(step) - step
        first, skipped = divmod(step, self.per_epoch)
        rows = np.concatenate(
            [self._epoch(epoch) for epoch in range(first, -(-(step + count) // self.per_epoch))]
        )
        return jax.device_put(self.task.pack("train", rows[skipped : skipped + count]), self.spread)

    def _epoch(self, epoch: int) -> np.ndarray:
        """The samples of an epoch in batches (steps, groups, B/groups)."""
        generator = np.random.default_rng([self.config.seed, epoch])
        rows = generator.permutation(self.task.size("train"))[
            : self.per_epoch * self.config.batch_size
        ]
        return self.task.deal("train", rows, self.per_epoch, self.groups, generator)

    def _stale(self, step: int) -> bool:
        epochs = step // self.per_epoch - int(np.max(self.best.epoch))
        return 0 < self.config.patience <= epochs

    def _check_finite(self, losses: np.ndarray, step: int) -> None:
        bad = np.flatnonzero(~np.isfinite(losses).all(axis=0))
        if len(bad) == 0:
            return
        step += int(bad[0])
        epoch, k = divmod(step, self.per_epoch)
        where = f"step {step} (epoch {epoch + 1}, batch {k + 1} of {self.per_epoch})"
        raise FloatingPointError(
            f"the loss is {losses[:, bad[0]].tolist()} at {where}; {self._last_good()}"
        )

    def _last_good(self) -> str:
        self.run.wait()
        last = self.run.latest("last")
        return (
            "there is no checkpoint yet"
            if last is None
            else f"the last good checkpoint is {self.run.path}/checkpoints/last/{last}"
        )

    def _log(self, bar: Any, step: int, loss: np.ndarray, metrics: dict[str, jax.Array]) -> None:
        valid = {name: _plain(value) for name, value in metrics.items()}
        entry = {"epoch": step / self.per_epoch, "step": step, "seconds": round(self.seconds, 3)}
        self.run.log(
            entry
            | {
                "train": {"loss": _plain(loss if self.config.seeds > 1 else loss[0])},
                "valid": valid,
            }
        )
        shown = {
            "epoch": f"{step // self.per_epoch}/{self.config.epochs}",
            "loss": f"{loss.mean():.5f}",
        }
        shown |= {
            "valid": f"{np.mean(valid[self.task.metric]):.5f}",
            "best": f"{np.mean(self.best.value):.5f}",
        }
        bar.set_postfix(shown)

    def _finish(self) -> dict[str, Any]:
        if not np.all(self.best.epoch):
            raise FloatingPointError(
                f"{self.task.metric} on the validation split was never finite; nothing is "
                f"known to be worth keeping"
            )
        result = summary(self.evaluate, self.best.params) | {
            "best_epoch": _plain(self.best.epoch),
            "seconds": round(self.seconds, 1),
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(self.best.params))
            // self.config.seeds,
            "config": configs.to_dict(self.config),
            "versions": versions(),
        }
        self.run.wait()
        self.run.finish(result)
        return result


def versions() -> dict[str, str]:
    """What the numbers of a run depend on, beside its config."""
    packages = ("jax", "jaxlib", "flax", "optax", "jraph", "numpy")
    device = jax.devices()[0]
    return {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
        "device": f"{device.platform} ({device.device_kind})",
        "devices": str(jax.local_device_count()),
    }


@contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C sets; a second one ends at once."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    before = signal.getsignal(signal.SIGINT)

    def note(*_: Any) -> None:
        event.set()
        print(
            "\nCtrl-C: saving after the steps under way; press again to stop at once",
            file=sys.stderr,
        )
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, note)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, before)


def _plain(value: Any) -> Any:
    return np.asarray(value).tolist()
