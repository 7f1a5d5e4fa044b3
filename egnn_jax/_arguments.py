"""Arguments of some commands; nothing of JAX is imported: help is to come at once."""

import argparse
from pathlib import Path

from egnn_jax._files import expanded

TARGETS = ("alpha", "gap", "homo", "lumo", "mu", "Cv", "G", "H", "r2", "U", "U0", "zpve")


def path(text: str) -> Path:
    """A path as typed, with ~ as the home folder."""
    try:
        return expanded(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(error) from error


def pack(parser: argparse.ArgumentParser) -> None:
    """Those of ``egnn pack``, which are named as the options of the task ``forces``."""
    parser.add_argument("files", nargs="+", metavar="FILE", help="any file that ASE reads")
    parser.add_argument("--out", type=path, required=True, metavar="FOLDER", help="a new folder")
    parser.add_argument("--cutoff", type=float, default=5.0, help="of the neighbors, in Å (5)")
    parser.add_argument("--energy", default="energy", help="the name of the energies (energy)")
    parser.add_argument("--forces", default="forces", help='of the forces (forces); "" for none')
    parser.add_argument("--stress", default="", help="of the stress (none)")
    parser.add_argument("--virial", default="", help="of the virial (none)")
    units = ("eV", "meV", "kcal/mol", "kJ/mol", "Hartree")
    parser.add_argument("--energy-unit", choices=units, default="eV", help="(eV)")
    parser.add_argument("--length-unit", choices=("Å", "nm", "Bohr"), default="Å", help="(Å)")


def reproduce(parser: argparse.ArgumentParser) -> None:
    """Those of ``egnn reproduce``."""
    choices = parser.add_subparsers(required=True, metavar="WHAT", dest="what")
    for name, text in (
        ("table2", "N-body: every row, and our best recipes"),
        ("figure2", "N-body: test error over the number of training trajectories"),
        ("figure5", "graph autoencoder: every encoder on both sets of graphs"),
        ("figure5-overfit", "graph autoencoder: F1 on graphs that were trained on"),
        ("table3", "QM9: the error of each property, beside every row of the paper"),
    ):
        choice = choices.add_parser(name, help=text, description=text)
        choice.add_argument("--runs", type=path, default=Path("runs"), help="where runs are")
        choice.add_argument("--out", type=path, default=Path("runs/report"), help="for tables")
        choice.add_argument("--seeds", type=int, help="how many are trained at once")
        if name != "figure2":
            choice.add_argument("--epochs", type=int, help="instead of the recipe's")
        if name in ("table2", "figure5"):
            choice.add_argument("--only", nargs="+", default=(), metavar="ROW", help="some rows")
        if name in ("figure2", "figure5-overfit"):
            choice.add_argument("--quick", action="store_true", help="fewer points, in minutes")
        if name == "figure2":
            choice.add_argument("--steps", type=int, help="of each training")
        if name == "table3":
            choice.add_argument(
                "--targets", nargs="+", default=TARGETS, choices=TARGETS, metavar="TARGET",
                help=f"of {', '.join(TARGETS)}",
            )  # fmt: skip
            choice.add_argument("--model", default="egnn", help="recipe, such as egnn or nmp")
            choice.add_argument("--together", action="store_true", help="vmapped, for a GPU")
            choice.add_argument("--half-periods", type=int, help="of the cosine; 3: authors' code")
