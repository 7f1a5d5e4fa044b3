"""Ensembles of potentials: their mean, and their spread as a measure of uncertainty."""

import dataclasses
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import egnn_jax
from egnn_jax.graph.geometry import safe_norm
from egnn_jax.graph.graph import GraphsTuple
from egnn_jax.potentials.potential import Potential


class Uncertain(ValueError):
    """The potentials of an ensemble differ by more than allowed, see ``ASECalculator``."""


class Spread(NamedTuple):
    """Spread of the predictions of an ensemble.

    Attributes:
      energy: standard deviation of the energy of each graph (G,).
      forces: root mean square length of the deviation from the mean force, for each atom (N,); with
        K - 1 instead of K, as in a sample standard deviation.
    """

    energy: jax.Array
    forces: jax.Array


@dataclasses.dataclass(frozen=True, eq=False)
class Ensemble:
    """Ensemble of potentials: one network with K sets of parameters, such as the seeds of a run.

    ::

        egnn train forces/ethanol --seeds 4 --run runs/four

        ensemble = egnn.Ensemble.load("runs/four")
        atoms.calc = egnn.ASECalculator(ensemble, max_spread=0.3)

    Args:
      potential: the network that all share.
      params: parameters with a leading axis of size K ≥ 2, as returned by ``egnn.fit(…, seeds=K)``.
      references: atomic reference energies in eV by symbol, which
        :class:`egnn_jax.ASECalculator` adds.

    Call: takes a graph; returns the output of :class:`egnn_jax.Potential`, averaged over the
    ensemble, and a :class:`Spread`.

    Raises:
      ValueError: ``potential`` is not a :class:`egnn_jax.Potential`, or the leading axes of the
        parameters differ or are shorter than 2.
    """

    potential: Potential
    params: Any
    references: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        """Raise ValueError if the parameters are not those of several potentials."""
        if not isinstance(self.potential, Potential):
            type_name = type(self.potential).__name__
            raise ValueError(f"the potential is a {type_name}; expected an egnn.Potential")
        sizes = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(self.params)}
        if len(sizes) != 1 or min(sizes) < (2,):
            lengths = sorted(size[0] if size else 0 for size in sizes)
            raise ValueError(
                f"the first axes of the parameters have the sizes {lengths}; expected one size, "
                "the number of potentials, of at least 2"
            )

    @classmethod
    def load(cls, *paths: Path | str) -> "Ensemble":
        """Load the potentials of runs, with all their seeds, and of exported files.

        Raises:
          ValueError: a file cannot be read or is not a potential, the networks or reference
            energies differ, or there are fewer than two different potentials.
        """
        models = []
        for path in paths:
            first = egnn_jax.load_pretrained(path)
            models.append(first)
            for k in range(1, first.card.get("seeds", 1)):
                models.append(egnn_jax.load_pretrained(path, first.card["seed"] + k))
        if len(models) < 2:
            raise ValueError(
                f"the runs and files ({', '.join(map(str, paths))}) hold {len(models)} potentials; "
                "expected two or more"
            )
        networks = [model.network for model in models]
        for network in networks:
            if not isinstance(network, Potential):
                type_name = type(network).__name__
                raise ValueError(f"a model is a {type_name}; expected runs of the task forces")
        references = [model.config.task.references for model in models]
        for network, energies in zip(networks, references, strict=True):
            if network != networks[0] or energies != references[0]:
                raise ValueError(
                    f"the potentials are {networks[0]} with free atoms {references[0]}, and "
                    f"{network} with {energies}; expected the same network and energies, trained "
                    "on the same structures"
                )
        host_params = [jax.device_get(model.params) for model in models]
        for params_a, params_b in itertools.combinations(host_params, 2):
            if jax.tree.all(jax.tree.map(np.array_equal, params_a, params_b)):
                raise ValueError(
                    f"two potentials of {', '.join(map(str, paths))} have the same parameters; "
                    "expected those of different trainings"
                )
        params = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(m.params for m in models))
        return cls(networks[0], params, references[0])

    def __call__(self, graph: GraphsTuple) -> tuple[GraphsTuple, Spread]:
        """Compute the mean and the spread of the predictions."""
        return mean_and_spread(self.potential, self.params, graph)


def mean_and_spread(
    potential: Potential, params: Any, graph: GraphsTuple
) -> tuple[GraphsTuple, Spread]:
    """Compute the mean and spread of an :class:`Ensemble` for a graph."""
    predictions: Any = jax.vmap(lambda params: potential.apply(params, graph))(params)
    h, y = predictions.nodes.h, predictions.nodes.y
    energies = predictions.globals.y[..., 0]
    stress = predictions.globals.stress
    mean = graph._replace(
        nodes=graph.nodes.replace(h=h.mean(axis=0), y=y.mean(axis=0)),
        globals=jax.tree.map(lambda a: a[0], predictions.globals).replace(
            y=predictions.globals.y.mean(axis=0),
            stress=None if stress is None else stress.mean(axis=0),
        ),
    )
    return mean, Spread(_deviation(energies[..., None]), _deviation(y))


def _deviation(values: jax.Array) -> jax.Array:
    """Standard deviation over the members, √(Σ_k ‖a_k - ā‖² / (K - 1)), of (K, M, n): (M,)."""
    deviations = jnp.moveaxis(values - values.mean(axis=0), 0, 1)
    norms = safe_norm(deviations.reshape(len(deviations), -1))  # derivative 0 where all are equal
    return norms / (len(values) - 1) ** 0.5


def require_certain(spread: np.ndarray, max_spread: float, symbols: Any) -> None:
    """Raise :class:`Uncertain` if the spread of a force (M,) exceeds the allowed maximum."""
    k = int(spread.argmax())
    if spread[k] > max_spread:
        raise Uncertain(
            f"the potentials differ by {spread[k]:.3g} eV/Å about the force on atom {k} "
            f"({symbols[k]}); expected at most {max_spread:g}"
        )


def require_finite(results: Mapping[str, Any]) -> None:
    """Raise FloatingPointError if a number in a calculator's results is not finite."""
    for name, value in results.items():
        if bad := int((~np.isfinite(value)).sum()):
            raise FloatingPointError(
                f"{bad} of {np.size(value)} numbers computed as {name} are not finite"
            )
