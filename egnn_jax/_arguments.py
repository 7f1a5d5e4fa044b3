"""The command-line arguments of ``egnn``."""

import argparse
from pathlib import Path

from egnn_jax._files import expanded
from egnn_jax.experiments.paper import TABLE3, TABLE3_TARGETS


def parser() -> argparse.ArgumentParser:
    """Make the argument parser, without importing JAX, so that help appears at once."""
    parser = argparse.ArgumentParser(
        prog="egnn",
        description="E(n)-equivariant graph networks: train, evaluate, export and predict.",
    )
    parser.add_argument(
        "--plugin",
        action="append",
        default=[],
        metavar="MODULE",
        help="import a module, or a .py file, that registers your models and tasks",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(command=name)
        return command

    command = add("train", "Train a model from a config or recipe.")
    command.usage = "egnn train CONFIG [--run FOLDER] [overrides; CONFIG --options shows them]"
    command.add_argument("config", help="a YAML file, or a recipe such as nbody/egnn_best")
    command.add_argument(
        "--run",
        type=_path,
        help="the folder to train in (default: runs/, the config's folder and name, and overrides)",
    )
    command.add_argument(
        "--init", help="weights to start from: an exported file, a run, qm9, qm9-smiles, or none"
    )
    command.add_argument(
        "--freeze",
        action="append",
        metavar="PATTERN",
        help="parameters that stay as they are, such as 'encoder/layer_[01]*'; may be repeated",
    )
    command.add_argument(
        "--init-skip",
        action="append",
        metavar="PATTERN",
        help="parameters to reinitialize after --init, such as 'graph_dec/*'; may be repeated",
    )
    command.add_argument("--options", action="store_true", help="show every option of the config")
    command.add_argument(
        "--coordinator",
        metavar="HOST:PORT",
        help="train as one of several processes, of which process 0 listens here (under Slurm, "
        "Open MPI and Kubernetes all three options are found)",
    )
    command.add_argument("--processes", type=int, metavar="N", help="how many; 1: train alone")
    command.add_argument("--process-id", type=int, metavar="K", help="of this one, from 0")

    command = add("launch", "Train in several processes on this machine.")
    command.usage = "egnn launch -n N train CONFIG [options of egnn train]"
    command.add_argument("-n", type=int, required=True, dest="number", help="how many processes")
    command.add_argument("arguments", nargs=argparse.REMAINDER, help="train, and its arguments")

    command = add("evaluate", "Print the errors of a run on the validation and test samples.")
    command.add_argument("run", type=_path, help="the folder of a run, or an exported file")

    command = add("export", "Write a trained network into one file for predictions.")
    command.add_argument("run", type=_path, help="the folder of a complete run")
    command.add_argument("path", type=_path, help="the file to write, NAME.safetensors")
    command.add_argument("--seed", type=int, help="of a run with several (default: its first)")

    command = add("predict", "Predict properties of your molecules.")
    command.add_argument("sources", nargs="+", metavar="FILE", help="a file, SMILES or InChI")
    command.add_argument(
        "--model",
        type=_path,
        help="a run on QM9 or a table, or an exported file (default: the pretrained networks, for "
        "all twelve properties of QM9)",
    )
    command.add_argument("--out", type=_path, metavar="FILE", help="write .csv, .json or .sdf too")

    command = add("md", "Run molecular dynamics with a trained potential.")
    command.add_argument("structure", help="a file that ASE reads; FILE@-1 for its last structure")
    command.add_argument("--model", required=True, help="a run of the task forces, or its export")
    command.add_argument("--ensemble", choices=("nvt", "nve"), default="nvt", help="(nvt)")
    command.add_argument(
        "--temperature",
        type=float,
        default=300.0,
        help="in K (300); nve: at the start, unless the file has momenta",
    )
    command.add_argument("--steps", type=int, default=10_000, help="(10,000)")
    command.add_argument("--timestep", type=float, default=0.5, help="in fs (0.5)")
    command.add_argument("--friction", type=float, default=0.01, help="of nvt, in 1/fs (0.01)")
    command.add_argument("--every", type=int, default=10, help="steps between frames (10)")
    command.add_argument("--seed", type=int, default=0, help="of velocities and noise (0)")
    command.add_argument(
        "--max-spread", type=float, metavar="EV_PER_A",
        help="simulate with all seeds of the run; stop if they differ by more about a force",
    )  # fmt: skip
    command.add_argument("--out", type=_path, help="a new folder (default: runs/md/ and the file)")

    text = "Compare the speed with PyTorch and JAX, in a clone; see scripts/benchmark.py."
    add("benchmark", text)

    command = add("report", "Tables and pictures of runs.")
    command.add_argument("runs", nargs="+", type=_path, help="folders of complete runs of one task")
    command.add_argument("--out", type=_path, help="where they go (default: report/ of the run)")

    _pack(add("pack", "Write structures as graphs into a folder, for data larger than memory."))

    reproduce = add("reproduce", "Reproduce a table or figure of the paper.")
    choices = reproduce.add_subparsers(required=True, metavar="WHAT", dest="what")
    for name, text in (
        ("table2", "N-body: every row, and our best recipes"),
        ("figure2", "N-body: test error over the number of training trajectories"),
        ("figure5", "graph autoencoder: every encoder on both sets of graphs"),
        ("figure5-overfit", "graph autoencoder: F1 on graphs that were trained on"),
        ("table3", "QM9: the error of each property, beside every row of the paper"),
    ):
        choice = choices.add_parser(name, help=text, description=text)
        choice.add_argument("--runs", type=_path, default=Path("runs"), help="where runs are")
        choice.add_argument("--out", type=_path, default=Path("runs/report"), help="for tables")
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
                "--targets", nargs="+", default=TABLE3_TARGETS, choices=TABLE3_TARGETS,
                metavar="TARGET", help=f"of {', '.join(TABLE3_TARGETS)}",
            )  # fmt: skip
            choice.add_argument(
                "--model", default="egnn", choices=TABLE3, metavar="MODEL",
                help=f"of {', '.join(TABLE3)} (egnn)",
            )  # fmt: skip
            choice.add_argument("--together", action="store_true", help="vmapped, for a GPU")
            choice.add_argument("--half-periods", type=int, help="of the cosine; 3: authors' code")
    return parser


def _pack(command: argparse.ArgumentParser) -> None:
    """Add the arguments of ``egnn pack``, named like the options of the task ``forces``."""
    command.add_argument("files", nargs="+", metavar="FILE", help="any file that ASE reads")
    command.add_argument("--out", type=_path, required=True, metavar="FOLDER", help="a new folder")
    command.add_argument("--cutoff", type=float, default=5.0, help="of the neighbors, in Å (5)")
    command.add_argument("--energy", default="energy", help="the name of the energies (energy)")
    command.add_argument("--forces", default="forces", help='of the forces (forces); "" for none')
    command.add_argument("--stress", default="", help="of the stress (none)")
    command.add_argument("--virial", default="", help="of the virial (none)")
    units = ("eV", "meV", "kcal/mol", "kJ/mol", "Hartree")
    command.add_argument("--energy-unit", choices=units, default="eV", help="(eV)")
    command.add_argument("--length-unit", choices=("Å", "nm", "Bohr"), default="Å", help="(Å)")


def _path(text: str) -> Path:
    """A path with ~ expanded to the home folder."""
    try:
        return expanded(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(error) from error
