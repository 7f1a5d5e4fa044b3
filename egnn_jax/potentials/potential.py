"""Energy of atoms, and forces and stress as its derivatives."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from egnn_jax.graph.graph import (
    Globals,
    GraphsTuple,
    PaddedGraphsTuple,
    graph_mask,
    graph_of_node,
    require_geometric,
    sum_nodes,
)
from egnn_jax.nn.mlp import MLP
from egnn_jax.nn.precision import backbone_of


class Potential(nn.Module):
    """Potential energy E = Σ_i (shift + scale · MLP(h_i)), forces -∂E/∂x and stress (1/V) ∂E/∂ε.

    The symmetric strain ε acts on x, shifts and the cell, x → x (1 + ε). E is relative to the
    atomic reference energies, which in float32 would leave too few digits for the contribution of
    bonds.

    Args:
      encoder: a backbone whose h depends only on differences of x. On a radius graph, it must have
        a ``cutoff``, where messages go to zero; otherwise energies jump.
      scale: scale of atomic energies, for example the root mean square force of the training set,
        so that the network itself outputs numbers of order one.
      shift: initial energy of an atom, for example the mean over the training set.
      stress: also compute the stress, for graphs with a cell.

    Call: takes a graph with h, atomic numbers (N,) or features (N, F), and x (N, 3) in Å; returns
    it with atomic energies (N, 1) in ``nodes.h``, forces (N, 3) in ``nodes.y``, the energy (G, 1)
    in ``globals.y``, and (G, 3, 3) or None in ``globals.stress``. The units are eV, eV/Å and eV/Å³
    if it was trained on these. Stress has ASE's sign, negative under compression, and is
    NaN for a graph whose cell has no volume, such as a slab with a third lattice vector of zero.

    Raises:
      ValueError: the graph is not from this library, or has no cell but ``stress`` is set; an EGNN
        has ``shrinkage``, or moves coordinates with ``normalize`` and without a cutoff.
    """

    encoder: nn.Module
    scale: float = 1.0
    shift: float = 0.0
    stress: bool = False

    @nn.compact
    def energies(self, graph: GraphsTuple) -> jax.Array:
        """Atomic energies E_i (N, 1): ``potential.apply(params, graph, method="energies")``."""
        _require_derivatives(backbone_of(self.encoder))
        h = self.encoder(graph).nodes.h
        outputs = MLP(h.shape[-1], 1, name="energy")(h).astype(graph.nodes.x.dtype)
        return self.shift + self.scale * outputs

    def __call__(self, graph: GraphsTuple) -> GraphsTuple:
        """Compute energies, forces and stress."""
        require_geometric(graph)
        x, cell = graph.nodes.x, getattr(graph.globals, "cell", None)
        if self.stress and cell is None:
            raise ValueError("the graph has no cell; expected one, or stress=False")
        n = x.shape[-1]
        strain = jnp.zeros((graph.n_node.shape[0], n, n), x.dtype)

        def energy(
            potential: "Potential", x: jax.Array, strain: jax.Array
        ) -> tuple[jax.Array, jax.Array]:
            moved = _with_strain(graph, x, strain) if potential.stress else _with_x(graph, x)
            energies = potential.energies(moved)
            return jnp.sum(energies), energies

        (_, energies), (gradient, virial) = nn.value_and_grad(energy, self, x, strain, has_aux=True)
        stress: Any = None
        if self.stress:
            volume = jnp.abs(jnp.linalg.det(cell))
            volume = jnp.where(volume > 0, volume, jnp.nan)
            if isinstance(graph, PaddedGraphsTuple):  # the cell of a padding graph has no volume
                volume = jnp.where(graph_mask(graph), volume, 1)
            stress = virial / volume[:, None, None]
        total = sum_nodes(graph, energies)
        globals_ = graph.globals if isinstance(graph.globals, Globals) else Globals()
        return graph._replace(
            nodes=graph.nodes.replace(h=energies, y=-gradient),
            globals=globals_.replace(y=total, stress=stress),
        )


def cutoff_of(potential: Potential) -> float:
    """The cutoff distance of a potential's messages in Å.

    Raises:
      ValueError: its backbone has no cutoff.
    """
    cutoff = getattr(potential.encoder, "cutoff", None)
    if cutoff is None:
        raise ValueError(
            f"{type(potential.encoder).__name__} has no cutoff; expected a model whose messages go "
            "to zero there"
        )
    return float(cutoff)


def _require_derivatives(encoder: nn.Module) -> None:
    """Raise ValueError for an EGNN whose energy has no forces or is not translation invariant."""
    layer_options = getattr(getattr(encoder, "layer", None), "keywords", {})  # if it is a partial
    option = lambda name: layer_options.get(name, getattr(encoder, name, None))
    updates_coordinates = option("update_coordinates")
    if updates_coordinates and option("shrinkage"):
        raise ValueError(
            f"the {type(encoder).__name__} has shrinkage, which moves nodes toward the origin but "
            "not their periodic images; expected shrinkage=0"
        )
    if updates_coordinates and option("normalize") and option("cutoff") is None:
        raise ValueError(
            f"the {type(encoder).__name__} has normalize and no cutoff, so forces would not be "
            "the derivatives of its energy; expected a cutoff, or update_coordinates=False"
        )


def _with_x(graph: GraphsTuple, x: jax.Array) -> GraphsTuple:
    return graph._replace(nodes=graph.nodes.replace(x=x))


def _with_strain(graph: GraphsTuple, x: jax.Array, strain: jax.Array) -> GraphsTuple:
    """The graph at x, with x, shifts and cells strained by ``strain`` (G, n, n)."""
    strain = (strain + jnp.swapaxes(strain, -1, -2)) / 2
    node_graph = graph_of_node(graph)
    x = x + jnp.einsum("ik,ikl->il", x, strain[node_graph])
    shift = graph.edges.shift
    if shift is not None:
        edge_strain = strain[node_graph[graph.receivers]]
        shift = shift + jnp.einsum("ik,ikl->il", shift, edge_strain)
    cell = graph.globals.cell
    cell = cell + jnp.einsum("gik,gkl->gil", cell, strain)
    return graph._replace(
        nodes=graph.nodes.replace(x=x),
        edges=graph.edges.replace(shift=shift),
        globals=graph.globals.replace(cell=cell),
    )
