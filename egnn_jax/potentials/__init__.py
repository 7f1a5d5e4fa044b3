"""Energies, forces and stress from a backbone."""
