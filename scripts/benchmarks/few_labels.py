"""Training on few labels: fine-tuning the weights "qm9-smiles" versus training from scratch.

    PYTHONPATH=scripts python -m benchmarks.few_labels --labels 200 500 2000 --seeds 3

The molecules are drawn from QM9: 1,000 for testing, 200 for validation and 200 to 2,000 for
training. In place of measured labels, two properties are computed from SMILES by RDKit: Crippen's
logP and the topological polar surface area (Å²). Each network is trained by the recipe
``molecules/table``; interrupted trainings resume, and completed ones are read.
"""

import argparse
import csv
import dataclasses
import io
import random
from pathlib import Path
from typing import Any

from egnn_jax._files import write_atomically
from egnn_jax.data import qm9_sources
from egnn_jax.experiments import config as configs
from egnn_jax.experiments.run import train
from egnn_jax.experiments.tables import markdown, write_table
from egnn_jax.training.distributed import use_all_cores

TEST, VALID, MAX_TRAIN = 1_000, 200, 2_000
COLUMNS = ("index", "SMILES", "logP", "TPSA")


def write_tables(folder: Path, sizes: list[int]) -> None:
    """Write ``test.csv``, ``valid.csv`` and ``train-SIZE.csv``."""
    from rdkit import Chem
    from rdkit.Chem import Crippen, rdMolDescriptors

    smiles = qm9_sources.smiles_of_package()
    descriptors: Any = rdMolDescriptors
    rows: list[tuple[int, str, float, float]] = []
    for index in random.Random(0).sample(sorted(smiles), 2 * (TEST + VALID + MAX_TRAIN)):
        molecule = Chem.MolFromSmiles(smiles[index])
        if molecule is not None:
            log_p, area = Crippen.MolLogP(molecule), descriptors.CalcTPSA(molecule)
            rows.append((index, smiles[index], log_p, area))
    splits = {"test": rows[:TEST], "valid": rows[TEST : TEST + VALID]}
    splits |= {f"train-{n}": rows[TEST + VALID :][:n] for n in sizes}
    for name, split_rows in splits.items():
        text = io.StringIO(newline="")
        writer = csv.writer(text)
        writer.writerow(COLUMNS)
        writer.writerows(split_rows)
        write_atomically(folder / f"{name}.csv", text.getvalue().encode())


def main() -> None:
    """Train all networks, and write the table after each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--labels", type=int, nargs="+", default=[200, 500, 2_000])
    parser.add_argument("--epochs", type=int, nargs="+", default=[60, 180])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    arguments = parser.parse_args()
    if not all(1 <= size <= MAX_TRAIN for size in arguments.labels):
        parser.error(f"--labels got {arguments.labels}; expected 1 to {MAX_TRAIN}")
    use_all_cores()
    folder = Path("runs/few_labels")
    folder.mkdir(parents=True, exist_ok=True)
    write_tables(folder, arguments.labels)
    rows = []
    for size in arguments.labels:
        for epochs in arguments.epochs:
            for weights in ("qm9-smiles", "new"):
                config = configs.load("molecules/table")
                task = dataclasses.replace(
                    config.task,
                    train=str(folder / f"train-{size}.csv"),
                    valid=str(folder / "valid.csv"),
                    test=str(folder / "test.csv"),
                    targets=("logP", "TPSA"),
                )
                rate = arguments.learning_rate
                optimizer = dataclasses.replace(config.optimizer, learning_rate=rate)
                changes: dict[str, Any] = {"task": task, "optimizer": optimizer}
                changes |= {"epochs": epochs, "seeds": arguments.seeds}
                if weights == "new":
                    changes |= {"init": None, "init_skip": ()}
                config = dataclasses.replace(config, **changes)
                result = train(
                    config, folder / f"{weights}-{size}-{epochs}-{rate:g}-{arguments.seeds}"
                )
                test, std = result["metrics"]["test"], result.get("std", {}).get("test", {})
                row = {"labels": f"{size:,}", "weights": weights, "epochs": str(epochs)}
                for name in ("logP", "TPSA"):
                    row[name] = f"{test[name]:.3f}" + (f" ± {std[name]:.3f}" if std else "")
                rows.append(row | {"minutes": f"{result['seconds'] / 60:.1f}"})
                write_table(rows, folder / "few-labels")
    print(markdown(rows))


if __name__ == "__main__":
    main()
