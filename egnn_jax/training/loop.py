"""The loop behind ``fit``: compiled chunks of steps, evaluations and checkpoints."""

import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec as P

from egnn_jax.training._validation import require_loss, require_metrics
from egnn_jax.training.callbacks import Callback, Progress
from egnn_jax.training.checkpoint import RunFolder
from egnn_jax.training.distributed import AXIS, DEVICES, batch_layout, free_heaps, load_shards, put
from egnn_jax.training.evaluation import MAX_CHUNK_BYTES, Evaluation, Metrics
from egnn_jax.training.plan import FitResult, Plan, chunk_length
from egnn_jax.training.processes import from_first, is_first, largest, require_same
from egnn_jax.training.signals import REASONS, Interrupted, stop_requested
from egnn_jax.training.state import init_best, init_state, keep_best
from egnn_jax.training.step import Loss, make_step, make_train


class Training:
    """One run of ``fit``, from its first or its last saved step to its end."""

    def __init__(
        self,
        plan: Plan,
        loss: Loss,
        params: Any,
        optimizer: optax.GradientTransformation,
        metrics: Metrics,
        folder: RunFolder | None,
        callbacks: Sequence[Callback],
    ) -> None:
        self.plan, self.folder = plan, folder
        self.callbacks = callbacks if is_first() else ()
        self.steps_per_epoch = plan.train.num_batches(0)
        total, seeds = plan.epochs * self.steps_per_epoch, plan.seeds
        self.interval = min(plan.eval_every, plan.epochs) * self.steps_per_epoch
        self.mesh, micro_batches = batch_layout(plan.train.batch_size, plan.micro_batches)
        self.shards = self.mesh.size * micro_batches
        batch_bytes = self._validated_batch_bytes(loss, metrics, params)
        max_steps = min(plan.chunk_steps, max(MAX_CHUNK_BYTES // batch_bytes, 1))
        self.steps_per_chunk = chunk_length(self.interval, total, max_steps)
        keys = [jax.random.split(jax.random.PRNGKey(plan.seed + k))[1] for k in range(seeds)]
        init = partial(init_state, optimizer=optimizer, average=plan.ema_decay > 0)
        init_seeds = jax.vmap(lambda params, key: init(params, key=key))
        state = init_seeds(params, jnp.stack(keys)) if seeds > 1 else init(params, key=keys[0])
        # Copied, since steps donate the state and the caller keeps the parameters.
        state = jax.tree.map(jnp.copy, state)
        self.state, self.best = put((state, init_best(state)), self.mesh, P())
        step = make_step(loss, optimizer, plan.ema_decay, self.mesh, micro_batches)
        self.train = make_train(step, seeds, self.mesh)
        valid, seed = plan.valid, plan.seed
        self.evaluation = None if valid is None else Evaluation(metrics, valid, seeds, seed)
        self.keep_best = jax.jit(
            keep_best if seeds == 1 else jax.vmap(keep_best, in_axes=(0, 0, 0, None))
        )
        self.progress = Progress(
            total_steps=total,
            epochs=plan.epochs,
            monitor=plan.monitor,
            folder=None if folder is None else folder.path,
        )
        self.history: list[dict[str, Any]] = []
        bits = 8 * np.dtype(jax.dtypes.canonicalize_dtype(float)).itemsize
        self.arithmetic = [self.shards, bits]  # plus step, shards and bits for each change
        self.losses = np.zeros(seeds)  # sum since the last evaluation
        self.saved_best, self.stopped = 0, False
        self.started = time.monotonic()

    def run(self) -> FitResult:
        """Train to the end and return the best parameters."""
        self._resume()
        from_first(lambda: self._notify("started"))
        try:
            with stop_requested() as signal:
                self._train(signal)
            if self.folder is not None:
                self._save()
                from_first(self.folder.wait)
        finally:
            self._notify("ended")
        if not np.all(self.best.epoch):
            raise FloatingPointError(
                f"{self.plan.monitor} of the validation samples was never finite: there are no "
                "parameters worth keeping"
            )
        params = jax.device_get(self.best.params)
        value, epoch = self._best_value_and_epoch
        return FitResult(params, value, epoch, self.history, self._seconds, tuple(self._notes()))

    def _train(self, signal: Callable[[], str | None]) -> None:
        total, step = self.progress.total_steps, self.progress.step
        last_save = time.monotonic()
        batches = None if self.stopped else self._pack(step)
        while step < total and not self.stopped:
            with DEVICES:
                self.state, losses = self.train(self.state, batches)
                start, step = step, self._chunk_end(step)
                batches = self._pack(step)  # while the devices compute
                losses = np.atleast_2d(np.asarray(losses, np.float64))
            self._require_finite(losses, start)
            self.losses = self.losses + losses.sum(axis=1)
            self.progress.step, self.progress.epoch = step, step / self.steps_per_epoch
            # A callback runs in one process, which can compute only with its own arrays.
            self.progress.params = jax.tree.map(_local_copy, self.state.evaluated)
            self.progress.seconds = self._seconds
            self._notify("stepped")
            if step % self.interval == 0 or step == total:
                self._evaluate()
            save_due = is_first() and time.monotonic() - last_save > self.plan.checkpoint_seconds
            reason_index, save = largest(REASONS.index(signal()), save_due)
            reason = REASONS[reason_index]
            if self.folder is not None and (reason or save):
                self._save()
                last_save = time.monotonic()
            if reason:
                raise self._interrupted(reason)

    @property
    def _best_value_and_epoch(self) -> tuple[np.ndarray, np.ndarray]:
        """The smallest validation value (nan without validation) and its epoch."""
        value, epoch = np.asarray(self.best.value), np.asarray(self.best.epoch)
        return (np.full_like(value, np.nan) if self.evaluation is None else value), epoch

    @property
    def _seconds(self) -> float:
        return time.monotonic() - self.started

    def _interrupted(self, reason: str) -> Interrupted:
        message = f"{reason} at step {self.progress.step:,} of {self.progress.total_steps:,}"
        if self.folder is None:
            return Interrupted(f"{message}; nothing was saved, since there is no folder", reason)
        from_first(self.folder.wait)
        message += f", saved in {self.folder.path}; the same command continues from there"
        return Interrupted(message, reason)

    def _evaluate(self) -> None:
        """Evaluate and log the current parameters, and keep them if they are the best."""
        progress = self.progress
        if self.evaluation is None:  # the last parameters are the best
            metrics = {}
            value = jnp.full(self.state.step.shape, -float(progress.step))
        else:
            metrics = self.evaluation(self.state.evaluated)
            value = metrics[self.plan.monitor]
        value = jax.device_get(value)  # an array of one process; the state spans all
        epoch = progress.step // self.steps_per_epoch
        self.best = self.keep_best(self.best, self.state, value, epoch)
        # An extended run was also evaluated at its former end.
        last_step = self.history[-1]["step"] if self.history else 0
        num_steps = min(progress.step - last_step, (progress.step - 1) % self.interval + 1)
        mean_loss = self.losses / num_steps
        progress.loss = mean_loss if self.plan.seeds > 1 else mean_loss[0]
        progress.metrics = {name: np.asarray(value) for name, value in metrics.items()}
        progress.best_value, progress.best_epoch = self._best_value_and_epoch
        progress.seconds = self._seconds
        self.losses = np.zeros_like(self.losses)
        self.history.append(progress.entry)
        self.stopped = from_first(lambda: self._notify("evaluated"))

    def _resume(self) -> None:
        """Continue from the last checkpoint, if there is one."""
        step = None if self.folder is None else self.folder.latest("last")
        require_same({"the last checkpoint": step})
        if self.folder is None or step is None:
            return
        checkpoint = self.folder.restore("last", self._checkpoint())
        self.state, self.best = put((checkpoint["state"], checkpoint["best"]), self.mesh, P())
        # A run that a callback stopped at its former end is continued if it was extended since.
        at_evaluation = step % self.interval == 0 or step == self.progress.total_steps
        self.losses = checkpoint["losses"]
        self.stopped = bool(checkpoint["stopped"]) and at_evaluation
        self.started = time.monotonic() - float(checkpoint["seconds"])
        self.progress.step, self.progress.epoch = step, step / self.steps_per_epoch
        self.progress.best_value, self.progress.best_epoch = self._best_value_and_epoch
        self.history = [entry for entry in self.folder.history() if entry["step"] <= step]
        saved, current = checkpoint["arithmetic"].tolist(), self.arithmetic
        self.arithmetic = saved if saved[-2:] == current else [*saved, step, *current]
        if self.arithmetic != saved:
            warnings.warn(self._notes()[-1], stacklevel=4)

    def _notes(self) -> list[str]:
        numbers = self.arithmetic
        return [
            "resumed at step {2} with {3} shards of a batch and {4}-bit numbers; before, {0} and "
            "{1}: the numbers are not those of one machine".format(*numbers[k : k + 5])
            for k in range(0, len(numbers) - 2, 3)
        ]

    def _checkpoint(self) -> dict[str, Any]:
        return {
            "state": self.state,
            "best": self.best,
            "losses": self.losses,
            "stopped": np.array(self.stopped),
            "seconds": np.array(self._seconds),
            "arithmetic": np.array(self.arithmetic),
        }

    def _save(self) -> None:
        """Write both checkpoints unless they are already on disk."""
        leaves = jax.tree.leaves(jax.device_get(self.state.params))
        if not all(np.isfinite(leaf).all() for leaf in leaves):
            raise FloatingPointError(
                f"the parameters are not finite after step {self.progress.step}; "
                f"{from_first(self._describe_checkpoints)}"
            )
        from_first(self._write_checkpoints)
        free_heaps()

    def _write_checkpoints(self) -> None:
        folder, step = self.folder, self.progress.step
        assert folder is not None
        if folder.latest("last") != step:
            folder.save("last", step, self._checkpoint())
        self._write_best()

    def _write_best(self) -> int:
        """Write the best parameters unless they are on disk, and return their epoch."""
        folder, step = self.folder, self.progress.step
        assert folder is not None
        epoch = int(np.max(self.best.epoch))
        if epoch != self.saved_best and (folder.latest("best") or -1) < step:
            folder.save("best", step, self.best)
            self.saved_best = epoch
        return epoch

    def _chunk_end(self, step: int) -> int:
        """The step after the chunk that starts at ``step``, at most that of the next evaluation."""
        next_evaluation = step - step % self.interval + self.interval
        return min(step + self.steps_per_chunk, next_evaluation, self.progress.total_steps)

    def _pack(self, step: int) -> Any:
        """The batches of the chunk that starts at ``step``, or None at the end."""
        end = self._chunk_end(step) if step < self.progress.total_steps else step
        by_epoch = []
        while step < end:
            epoch, start = divmod(step, self.steps_per_epoch)
            count = min(end - step, self.steps_per_epoch - start)
            batches = load_shards(self.plan.train, self.mesh, self.shards, epoch, start, count)
            by_epoch.append(batches)
            step += count
        if not by_epoch:
            return None
        batches = by_epoch[0]
        if len(by_epoch) > 1:
            batches = jax.tree.map(lambda *leaves: np.concatenate(leaves), *by_epoch)
        return put(batches, self.mesh, P(None, AXIS))

    def _require_finite(self, losses: np.ndarray, step: int) -> None:
        if len(nonfinite := np.flatnonzero(~np.isfinite(losses).all(axis=0))):
            k = nonfinite[0]
            epoch, batch = divmod(step + int(k), self.steps_per_epoch)
            raise FloatingPointError(
                f"the loss is {losses[:, k].tolist()} at step {step + k} (epoch {epoch + 1}, "
                f"batch {batch + 1} of {self.steps_per_epoch}); "
                f"{from_first(self._describe_checkpoints)}"
            )

    def _describe_checkpoints(self) -> str:
        """Save the best parameters of a failed run, and describe which checkpoints remain."""
        if self.folder is None:
            return "there are no checkpoints, since there is no folder"
        epoch = self._write_best()
        self.folder.wait()
        step = self.folder.latest("last")
        message = "there is no checkpoint yet"
        if step is not None:
            message = f"the last good checkpoint is {self.folder.path}/checkpoints/last/{step}"
        if epoch:
            message += f"; the best parameters, of epoch {epoch}, are kept: evaluate reads them"
        return message

    def _notify(self, method: str) -> bool:
        """Call this method of every callback; return whether one returned True, for all seeds."""
        methods = [getattr(callback, method, None) for callback in self.callbacks]
        results = [np.asarray(method(self.progress)) for method in methods if method is not None]
        return any(result.dtype == bool and result.size and result.all() for result in results)

    def _validated_batch_bytes(self, loss: Loss, metrics: Metrics, params: Any) -> int:
        """Return the bytes of a batch; ValueError if the loss or the metrics are not valid."""
        if self.plan.seeds > 1:
            params = jax.tree.map(lambda a: a[0], params)
        batch = jax.tree.map(lambda a: a[0, 0], self.plan.train.batches(0, 0, 1, self.shards))
        require_loss(loss, params, batch)
        if self.plan.valid is not None:
            require_metrics(metrics, params, batch, self.plan.monitor)
        return self.shards * sum(leaf.nbytes for leaf in jax.tree.leaves(batch))


def _local_copy(array: jax.Array) -> jax.Array:
    """A replicated array, as a copy on one device of this process if it spans several."""
    return array if array.is_fully_addressable else array.addressable_data(0)
