"""Test whether the spread of an ensemble predicts its errors and selects useful structures.

PYTHONPATH=scripts python -m benchmarks.active_learning --data ../shared/data

Acetylacetone, labeled by density functional theory (BOTNet's data sets). Four EGNNs are trained on
50 structures at 300 K. Then 100 of 325 structures at 300 K and 225 at 600 K are added: those with
the largest spread of a force, or 100 at random. Four new EGNNs are trained on all 150; the other
100 structures at 600 K are the test set. Each repetition draws the 50, the 225 and the networks
anew. Prints Spearman's rank correlation of spread and error of the first four on the test set, the
mean error over the mean spread at both temperatures, and the force errors. Completed repetitions
are saved and not repeated.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from scipy.stats import spearmanr

import egnn_jax as egnn
from egnn_jax._files import write_atomically
from egnn_jax.data import labelled
from egnn_jax.data.frames import Labels
from egnn_jax.experiments.tables import markdown

CUTOFF, SEEDS, BATCH = 5.0, 4, 5
FIRST, ADDED, HOT = 50, 100, 225
MODEL = egnn.EGNN(features=48, layers=3, cutoff=CUTOFF, num_rbf=8, coordinate_aggregation="sum")


def structures(path: Path, references: dict[str, float]) -> list[Any]:
    """Load the graphs of a file, with energies relative to free atoms."""
    # Use all pairs, so that all graphs have the same shape; the network has a cutoff.
    graphs = labelled.read(str(path), Labels(), None).samples(references)
    return [graphs[k] for k in range(len(graphs))]


def train(graphs: list[Any], seed: int, steps: int) -> egnn.Ensemble:
    """Train four networks, with the best of their last parameters on a tenth of the graphs."""
    data = egnn.GraphDataset(graphs)
    train_data, valid_data = data.split(0.9, seed=seed)
    forces = np.concatenate([graph.nodes.y for graph in graphs])
    energies = np.array([float(g.globals.y[0, 0]) / len(g.nodes.x) for g in graphs])
    potential = egnn.Potential(
        MODEL, scale=float(np.sqrt(np.mean(forces**2))), shift=float(energies.mean())
    )
    keys = jax.random.split(jax.random.key(seed), SEEDS)
    params = jax.vmap(lambda key: potential.init(key, data[0]))(keys)
    per_epoch = len(train_data) // BATCH
    epochs = max(steps // per_epoch, 1)
    optimizer = optax.chain(
        optax.clip_by_global_norm(10.0),
        optax.adamw(optax.warmup_cosine_decay_schedule(0, 2e-3, steps // 50, epochs * per_epoch)),
    )
    result = egnn.fit(
        egnn.losses.energy_forces(potential, energy=10.0),
        params, train_data.loader(BATCH, seed), valid_data.loader(BATCH), optimizer,
        epochs=epochs, seeds=SEEDS, seed=seed, ema_decay=0.999, eval_every=max(epochs // 20, 1),
    )  # fmt: skip
    return egnn.Ensemble(potential, result.params)


def spreads_and_errors(
    ensemble: egnn.Ensemble, graphs: list[Any]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The spread and the error length of each force (S, M), and the errors of its components
    (S, M, 3).
    """
    predict = jax.jit(ensemble)
    stds, errors = [], []
    for graph in graphs:
        mean, std = predict(graph)
        stds.append(np.asarray(std.forces))
        errors.append(np.asarray(mean.nodes.y) - np.asarray(graph.nodes.y))
    differences = np.array(errors)
    return np.array(stds), np.linalg.norm(differences, axis=-1), np.abs(differences)


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's rank correlation."""
    result: Any = spearmanr(a, b)
    return float(result.statistic)


def repetition(data: Path, seed: int, steps: int) -> dict[str, Any]:
    """Run one repetition; forces are in meV/Å."""
    names = ("acac_300K_train", "acac_300K_test", "acac_600K_test")
    paths = [data / f"{name}.xyz.gz" for name in names]
    references, _ = labelled.read(str(paths[0]), Labels(), CUTOFF).fit_e0s()
    train_300, pool_300, structures_600 = (structures(path, references) for path in paths)
    rng = np.random.default_rng(seed)
    initial = [train_300[k] for k in rng.permutation(len(train_300))[:FIRST]]
    order = rng.permutation(len(structures_600))
    pool = pool_300 + [structures_600[k] for k in order[:HOT]]
    test = [structures_600[k] for k in order[HOT:]]
    ensemble = train(initial, 10 * seed, steps)
    std, error, component_error = spreads_and_errors(ensemble, test)
    std_300, error_300, _ = spreads_and_errors(ensemble, pool_300)
    results: dict[str, Any] = {
        "Spearman of atoms": spearman(std.ravel(), error.ravel()),
        "Spearman of structures": spearman(std.mean(axis=1), error.mean(axis=1)),
        "error / spread, 300 K": float(error_300.mean() / std_300.mean()),
        "error / spread, 600 K": float(error.mean() / std.mean()),
        "50": 1e3 * float(component_error.mean()),
    }
    selected = np.argsort(spreads_and_errors(ensemble, pool)[0].max(axis=1))[-ADDED:]
    results["hot among chosen"] = int((selected >= len(pool_300)).sum())
    random_selection = rng.permutation(len(pool))[:ADDED]
    for name, indices in (("by spread", selected), ("at random", random_selection)):
        retrained = train([*initial, *(pool[k] for k in indices)], 10 * seed + 5, steps)
        results[name] = 1e3 * float(spreads_and_errors(retrained, test)[2].mean())
    return results


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="the folder of the files")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10_000, help="of each training (10,000)")
    parser.add_argument("--out", type=Path, default=Path("runs/active_learning"))
    options = parser.parse_args()
    rows = []
    for seed in range(options.repetitions):
        file = options.out / f"{options.steps}-{seed}.json"
        if not file.is_file():
            start = time.monotonic()
            results = repetition(options.data, seed, options.steps)
            results["seconds"] = time.monotonic() - start
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(file, json.dumps(results).encode())
        results = json.loads(file.read_text(encoding="utf-8"))
        rows.append(
            {"repetition": str(seed)} | {name: f"{value:.3g}" for name, value in results.items()}
        )
    print(markdown(rows))


if __name__ == "__main__":
    main()
