"""Detection of forked processes, in which JAX hangs because its threads are not copied."""

import os
from typing import Any

from jax._src import xla_bridge  # no public function says whether JAX has run

_forked_after_jax = False


def require_usable_jax() -> None:
    """Raise RuntimeError if this process was forked after JAX had run in its parent."""
    if _forked_after_jax:
        raise RuntimeError(
            "this process was forked from one in which JAX had run, and JAX would hang; "
            "expected a new process: multiprocessing.get_context('spawn') or 'forkserver'"
        )


def _after_fork() -> None:
    global _forked_after_jax
    backends: Any = getattr(xla_bridge, "_backends", None)
    _forked_after_jax = _forked_after_jax or bool(backends)


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_after_fork)
