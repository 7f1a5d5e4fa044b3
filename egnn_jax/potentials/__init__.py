"""Energies, forces and stress from a backbone."""

from egnn_jax.potentials import jax_md as jax_md
