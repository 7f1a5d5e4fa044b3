"""Geometric graphs: types, builders, batches, masks, readouts and the symmetries of space."""
