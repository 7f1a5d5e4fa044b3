"""The random graphs of the autoencoder (section 5.2): community, Erdős–Rényi, and small sets for
overfitting.

They are the authors' graphs, drawn in the same way from the same seeds in the same order.
"""

import random
from functools import partial
from itertools import combinations, product
from pathlib import Path

import networkx as nx
import numpy as np

from egnn_jax._files import expanded
from egnn_jax.data.cache import cached_arrays, default_folder

SPLITS = {"train": (0, 5_000), "valid": (1, 500), "test": (2, 500)}
"""Seed and number of graphs of each split."""
ERDOS_RENYI_SIZES = range(7, 17)
COMMUNITY_SIZES = range(6, 11)
OVERFIT_SEED = 3
OVERFIT_GRAPHS = 100
MAX_NODES = {
    "community": 2 * COMMUNITY_SIZES[-1],
    "erdos_renyi": ERDOS_RENYI_SIZES[-1],
    "overfit": ERDOS_RENYI_SIZES[-1],
}
"""The largest number of nodes of each data set."""


def load(
    name: str, split: str, edge_probability: float = 0.25, folder: Path | None = None
) -> list[nx.Graph]:
    """Load one split of the paper's random graphs; the first call draws and caches it.

    Args:
      name: "community" (two communities, 12 to 20 nodes), "erdos_renyi" (7 to 16 nodes) or
        "overfit" (100 Erdős–Rényi graphs, the same in every split).
      split: "train" (5,000 graphs), "valid" or "test" (500 each).
      edge_probability: p_e of "overfit"; the other two data sets use the paper's.
      folder: folder of the cache; default :func:`egnn_jax.data.cache.default_folder`.

    Raises:
      ValueError: the name or the split is unknown, or the probability is not between 0 and 1.
    """
    if name not in MAX_NODES:
        raise ValueError(f"data set {name!r} is unknown; expected one of {sorted(MAX_NODES)}")
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is unknown; expected one of {tuple(SPLITS)}")
    if not 0 < edge_probability < 1:
        raise ValueError(
            f"edge_probability is {edge_probability}; expected a number between 0 and 1"
        )
    if name == "overfit":
        file = f"overfit-{edge_probability!r}"
        draw = partial(erdos_renyi, OVERFIT_SEED, OVERFIT_GRAPHS, edge_probability)
    else:
        file = f"{name}-{split}"
        draw = partial(communities if name == "community" else erdos_renyi, *SPLITS[split])
    folder = default_folder() if folder is None else expanded(folder)
    arrays = cached_arrays(folder / "random_graphs" / f"{file}.npz", lambda: _flat(draw()))
    edge_lists = np.split(arrays["edges"], np.cumsum(arrays["n_edge"])[:-1])
    return [_graph(n, edges) for n, edges in zip(arrays["n_node"], edge_lists, strict=True)]


def erdos_renyi(seed: int, count: int, edge_probability: float = 0.25) -> list[nx.Graph]:
    """Draw ``count`` graphs, equally many of each size from 7 to 16, in shuffled order."""
    generator = random.Random(seed)
    sizes = [size for _ in range(count // len(ERDOS_RENYI_SIZES)) for size in ERDOS_RENYI_SIZES]
    graphs = [nx.gnp_random_graph(size, edge_probability, seed=generator) for size in sizes]
    generator.shuffle(graphs)
    return graphs


def communities(seed: int, count: int) -> list[nx.Graph]:
    """Draw ``count`` graphs of two dense communities with few edges between them."""
    generator = np.random.RandomState(seed)
    return [_community(generator) for _ in range(count)]


def _community(generator: np.random.RandomState) -> nx.Graph:
    sizes = generator.choice(list(COMMUNITY_SIZES), 2)
    # The original code also seeds the communities with 0 and 1, so there are only five of each.
    graph = nx.disjoint_union_all(
        [nx.gnp_random_graph(int(size), 0.7, seed=k) for k, size in enumerate(sizes)]
    )
    components = [sorted(component) for component in nx.connected_components(graph)]
    for first, second in combinations(components, 2):
        edges = [pair for pair in product(first, second) if generator.rand() < 0.01]
        graph.add_edges_from(edges or [(first[0], second[0])])
    return graph


def _flat(graphs: list[nx.Graph]) -> dict[str, np.ndarray]:
    edges = [edge for graph in graphs for edge in graph.edges]
    return {
        "n_node": np.array([len(graph) for graph in graphs], np.int32),
        "n_edge": np.array([graph.number_of_edges() for graph in graphs], np.int32),
        "edges": np.array(edges, np.int32).reshape(-1, 2),
    }


def _graph(n_node: int, edges: np.ndarray) -> nx.Graph:
    graph = nx.empty_graph(int(n_node))
    graph.add_edges_from(edges.tolist())
    return graph
