"""Properties of molecules of your own by a network trained on QM9.

python scripts/predict.py runs/qm9/homo caffeine.sdf water.xyz CCO

Each FILE is an .xyz, .sdf, .mol or .smi file, or a SMILES.
"""

import argparse
import csv
import io
import sys
from pathlib import Path

import numpy as np

from egnn_jax.data import qm9
from egnn_jax.data import structures as molecules
from egnn_jax.data.cache import write_atomically
from egnn_jax.data.structures import Structure
from egnn_jax.experiments import QM9
from egnn_jax.experiments.task import markdown
from egnn_jax.training.checkpoint import RunFolder
from egnn_jax.training.fit import first_seed, load


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", help="the folder of a run on QM9")
    parser.add_argument(
        "sources", nargs="+", metavar="FILE", help=f"{', '.join(molecules.READ)} or a SMILES"
    )
    parser.add_argument("--out", type=Path, metavar="CSV", help="write the table to this file too")
    arguments = parser.parse_args()
    structures = [structure for source in arguments.sources for structure in molecules.read(source)]
    config, model, params = load(arguments.run)
    task = config.task
    if not isinstance(task, QM9):
        raise ValueError(f"{arguments.run} is a run of {type(task).__name__}; expected one on QM9")

    usable = [s for s in structures if isinstance(s, Structure)]
    known = [
        s for s in usable if set(s.symbols) <= set(qm9.ELEMENTS) and len(s.symbols) <= qm9.LARGEST
    ]
    told = iter(
        task.properties(
            model.apply,
            first_seed(config, params),
            np.array([len(s.symbols) for s in known]),
            np.array([qm9.ELEMENTS[symbol] for s in known for symbol in s.symbols], np.int8),
            np.concatenate([s.positions for s in known]),
        )
        if known
        else []
    )
    rows = []
    for structure in structures:
        if isinstance(structure, Structure):
            formula, geometry, reasons = (
                structure.formula,
                structure.geometry,
                molecules.outside(structure),
            )
        else:
            formula, geometry, reasons = "–", "–", [structure.reason]
        row = {"molecule": structure.name, "formula": formula, "geometry": geometry}
        values = next(told) if structure in known else [None] * len(task.targets)
        for name, value in zip(task.targets, values, strict=True):
            digits = 1 if qm9.UNITS[name] == "meV" else 3
            row[f"{name} ({qm9.UNITS[name]})"] = "–" if value is None else f"{value:.{digits}f}"
        rows.append(row | {"outside QM9": "; ".join(reasons) if reasons else "no"})
    print(markdown(rows), end="")
    if (run := RunFolder(arguments.run)).result_file.exists():
        errors = run.result()["metrics"]["test"]
        shown = ", ".join(f"{name} {errors[name]:.4g} {qm9.UNITS[name]}" for name in task.targets)
        print(f"\nmean absolute error on QM9's test molecules: {shown}")
    if arguments.out:
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(arguments.out, text.getvalue().encode())
    if refused := len(structures) - len(usable):
        raise ValueError(
            f"{refused} of {len(structures)} molecules cannot be used; the table's last column "
            f"says why"
        )


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(f"predict.py: error: {error}")
