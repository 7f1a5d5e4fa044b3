"""Geometric graphs: types, builders, batching, masks, readouts and Euclidean symmetries."""
