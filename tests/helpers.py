"""Graphs and parameters that tests share: ragged, directed, with isolated nodes; parameters of order one."""

import jax
import numpy as np

import egnn_jax as egnn


def random_graph(rng, sizes=(4, 1, 6), n=3, features=2, attributes=2, velocity=True, padding=True, dtype=np.float64):
    """A padded batch of directed graphs; the last node of each graph receives nothing."""
    graphs = []
    for size in sizes:
        adjacency = (rng.random((size, size)) < 0.6) & ~np.eye(size, dtype=bool)
        adjacency[-1] = False
        receivers, senders = np.nonzero(adjacency)
        draw = lambda *shape: rng.standard_normal(shape).astype(dtype)
        graphs.append(
            egnn.graph_from_edges(
                senders,
                receivers,
                x=draw(size, n),
                h=draw(size, features),
                v=draw(size, n) if velocity else None,
                edges=draw(len(senders), attributes) if attributes else None,
            )
        )
    total = sum(g.senders.shape[0] for g in graphs)
    return egnn.batch(graphs, egnn.Budget(sum(sizes) + 3, total + 5, len(sizes) + 2) if padding else None)


def order_one(params, rng):
    """Parameters redrawn so that every part of a network matters."""
    return jax.tree.map(lambda a: (rng.standard_normal(a.shape) / np.sqrt(max(a.shape[0], 1) if a.ndim > 1 else 4)).astype(a.dtype), params)
