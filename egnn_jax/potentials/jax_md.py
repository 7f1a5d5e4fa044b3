"""Potentials as jax-md energy functions of positions and neighbors, for jax-md's simulators."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from egnn_jax._extras import require
from egnn_jax.graph import _validation
from egnn_jax.nn.precision import backbone_of
from egnn_jax.potentials._padding import padded_graph
from egnn_jax.potentials.potential import Potential, cutoff_of


def energy(
    potential: Potential,
    params: Any,
    displacement: Callable[..., jax.Array],
    box: Any,
    numbers: Any,
    *,
    systems: Any = None,
    dr_threshold: float = 0.5,
    **neighbor_options: Any,
) -> tuple[Any, Callable[..., jax.Array]]:
    """Create the neighbor and energy functions of a potential for jax-md's simulators.

    ::

        displacement, shift = jax_md.space.periodic_general(box)
        neighbor_fn, energy_fn = egnn.jax_md.energy(potential, params, displacement, box, numbers)
        init, step = jax_md.simulate.nve(energy_fn, shift, dt)

    Energies are relative to those of free atoms if the potential was trained on such energies, as
    in runs; float32 then resolves energy differences. To use other parameters, for example to
    differentiate with respect to them, pass ``params=`` to ``energy_fn``. Its other keyword
    arguments, such as ``box`` and ``perturbation``, are passed to ``displacement``. If a given
    ``box`` is too small for one image of each neighbor, the energy and its gradients are NaN. As
    usual in jax-md, ``neighbor.did_buffer_overflow`` tells whether a neighbor list was too small.

    Args:
      potential: a potential whose backbone has a ``cutoff``.
      params: its parameters.
      displacement: displacement function of a jax-md space, ``displacement(R_a, R_b)`` in Å.
      box: as in jax-md: a length, lengths (3,), or lattice vectors as columns of an upper
        triangular matrix, in Å; None in free space.
      numbers: atomic numbers (M,).
      systems: the system that each atom belongs to (M,), to simulate several at once; atoms of
        different systems do not interact. In free space only.
      dr_threshold: distance beyond the cutoff up to which neighbors are listed, in Å.
      **neighbor_options: options of ``jax_md.partition.neighbor_list``, for example
        ``fractional_coordinates=True`` and ``capacity_multiplier``.

    Returns:
      ``neighbor_fn``, which allocates and updates neighbor lists, and
      ``energy_fn(R, neighbor, **kwargs)``, which returns a scalar in eV.

    Raises:
      ImportError: jax-md is not installed.
      ValueError: the backbone has no cutoff, the box is smaller than twice the cutoff and
        ``dr_threshold`` or not upper triangular, ``numbers`` or ``systems`` are not integers (M,),
        an option is out of range, or ``systems`` are given to an EGNN whose messages depend on the
        number of nodes (``coordinate_aggregation="all_nodes"``).
    """
    require("jax_md")
    from jax_md import partition

    if not isinstance(potential, Potential):
        raise ValueError(
            f"potential is a {type(potential).__name__}; expected an egnn.Potential; of a trained "
            "network, network and params"
        )
    _validation.require_not_negative(dr_threshold=dr_threshold)
    list_cutoff = cutoff_of(potential) + float(dr_threshold)
    numbers = np.asarray(numbers)
    if numbers.ndim != 1 or not numbers.size or not np.issubdtype(numbers.dtype, np.integer):
        raise ValueError(
            f"numbers are {numbers.dtype} {numbers.shape}; expected atomic numbers (M,), integers"
        )
    _validation.features("numbers", numbers, len(numbers))
    _require_box(box)
    if box is not None and not (height := float(_height(box))) >= 2 * list_cutoff:
        raise ValueError(
            f"the box is {height:.4g} Å from face to face; expected at least "
            f"{2 * list_cutoff:.4g} Å, twice the cutoff and dr_threshold, since jax-md has one "
            "image of each neighbor: repeat the cell"
        )
    reserved = {"format"} | ({"custom_mask_function"} if systems is not None else set())
    if names := reserved & neighbor_options.keys():
        raise ValueError(f"{', '.join(sorted(names))} is given; expected it to be left to energy")
    if systems is not None:
        neighbor_options["custom_mask_function"] = _system_mask(np.asarray(systems), numbers, box)
        backbone = backbone_of(potential.encoder)
        if getattr(backbone, "coordinate_aggregation", None) == "all_nodes":
            raise ValueError(
                "systems are given with coordinate_aggregation='all_nodes', which counts the atoms "
                "of all systems; expected 'sum'"
            )
    any_box: Any = 1.0 if box is None else box
    neighbor_fn = partition.neighbor_list(
        displacement,
        any_box,
        potential.encoder.cutoff,
        dr_threshold,
        format=partition.Sparse,
        disable_cell_list=neighbor_options.pop("disable_cell_list", box is None),
        **neighbor_options,
    )

    def energy_fn(R: jax.Array, neighbor: Any, params: Any = params, **kwargs: Any) -> jax.Array:
        """Compute E in eV from positions (M, 3) and a neighbor list."""
        if neighbor.format is not partition.Sparse:
            raise ValueError(f"neighbors are {neighbor.format}; expected those of neighbor_fn")
        senders, receivers = neighbor.idx
        first = R.at[jnp.minimum(senders, receivers)].get(mode="clip")
        last = R.at[jnp.maximum(senders, receivers)].get(mode="clip")
        r = jax.vmap(partial(displacement, **kwargs))(first, last)
        # Exactly opposite for opposite edges, by which DimeNet++ recognizes them; those of jax-md
        # differ in the last bit in a periodic box, and are equal at half a box.
        r_ij = jnp.where((receivers < senders)[:, None], r, -r)
        # A backbone only sees differences x_i - x_j - shift, so the shift can hold -r_ij.
        graph = padded_graph(numbers, jnp.zeros_like(R), senders, receivers, -r_ij)
        energies: Any = potential.apply(params, graph, method="energies")
        total = jnp.sum(energies[: len(numbers)])
        for name in ("box", "new_box"):
            if name in kwargs:
                # A factor, so that forces are NaN too.
                total *= jnp.where(_height(kwargs[name]) >= 2 * list_cutoff, 1.0, jnp.nan)
        return total

    return neighbor_fn, energy_fn


def _require_box(box: Any) -> None:
    if box is None:
        return
    shape = np.shape(box)
    if len(shape) > 2 or (shape and shape != shape[:1] * len(shape)):
        raise ValueError(f"the box has shape {shape}; expected (), (3,) or (3, 3)")
    if len(shape) == 2 and np.abs(np.tril(np.asarray(box), -1)).max() > 1e-6 * np.abs(box).max():
        raise ValueError(
            f"the box is {np.asarray(box).tolist()}; expected lattice vectors as columns of an "
            "upper triangular matrix: of ASE's atoms, atoms.cell.standard_form()[0].array.T"
        )


def _height(box: Any) -> jax.Array:
    """The smallest distance between two opposite faces of a box."""
    box = jnp.asarray(box, float)
    if box.ndim < 2:
        return jnp.min(box)
    return 1 / jnp.max(jnp.linalg.norm(jnp.linalg.inv(box), axis=1))


def _system_mask(systems: np.ndarray, numbers: np.ndarray, box: Any) -> Callable[..., jax.Array]:
    """Create a mask function that replaces candidates (M, K) of other systems by M."""
    if box is not None:
        raise ValueError("systems are given with a box; expected them in free space only")
    if systems.shape != numbers.shape or systems.dtype.kind not in "biu":
        raise ValueError(
            f"systems are {systems.dtype} {systems.shape}; expected integers {numbers.shape}, one "
            "an atom"
        )
    system = jnp.asarray(systems)
    return lambda candidates: jnp.where(
        system.at[candidates].get(mode="clip") == system[:, None], candidates, len(systems)
    )
