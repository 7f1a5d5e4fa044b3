"""The command ``egnn``."""

import argparse
import dataclasses
import json
import os
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from egnn_jax import _arguments
from egnn_jax._extras import advice, import_plugin
from egnn_jax.training.signals import Interrupted

_path = _arguments.path
_OPTIONS = (
    "Options of this config. --model.name NAME takes another model, in which options of the same "
    "name keep their values."
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command of the command line; exits with 1 and a sentence where it fails."""
    parser = _parser()
    parsed, rest = parser.parse_known_args(arguments)
    if rest and parsed.run_command not in (_train, _benchmark):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    usual = warnings.formatwarning
    warnings.formatwarning = lambda message, *_, **__: f"egnn: warning: {message}\n"
    try:
        for plugin in parsed.plugin:
            import_plugin(plugin)
        parsed.run_command(parsed, rest)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (Interrupted, KeyboardInterrupt) as stop:
        print(f"egnn: {str(stop) or 'stopped by Ctrl-C'}", file=sys.stderr)
        sys.exit(getattr(stop, "exit_code", 130))
    except (ValueError, FloatingPointError) as error:
        sys.exit(f"egnn: error: {error}")
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        sys.exit(f"egnn: error: {where}{error.strerror or error}")
    except ImportError as error:
        sys.exit(f"egnn: error: {advice(error)}")
    finally:
        warnings.formatwarning = usual


def _parser() -> argparse.ArgumentParser:
    """The parser, which imports nothing of JAX: help is to come at once."""
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

    def add(name: str, run: Callable[..., None], text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(run_command=run)
        return command

    command = add("train", _train, "Train a model as a config or recipe says.")
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
        default=[],
        metavar="PATTERN",
        help="parameters that stay as they are, such as 'encoder/layer_[01]*'; may be repeated",
    )
    command.add_argument(
        "--init-skip",
        action="append",
        default=[],
        metavar="PATTERN",
        help="parameters that are new in spite of --init, such as 'graph_dec/*'; may be repeated",
    )
    command.add_argument("--options", action="store_true", help="show every option of the config")

    command = add("evaluate", _evaluate, "Errors of a run on the validation and test samples.")
    command.add_argument("run", type=_path, help="the folder of a run, or an exported file")

    command = add("export", _export, "Weights and all that a prediction needs, in one file.")
    command.add_argument("run", type=_path, help="the folder of a complete run")
    command.add_argument("path", type=_path, help="the file to write, NAME.safetensors")
    command.add_argument("--seed", type=int, help="of a run with several (default: its first)")

    command = add("predict", _predict, "Properties of your molecules by networks of QM9.")
    command.add_argument("sources", nargs="+", metavar="FILE", help="a file, SMILES or InChI")
    command.add_argument(
        "--model",
        type=_path,
        help="the folder of a run on QM9, or an exported file (default: the networks that come "
        "with egnn_jax, of all twelve properties)",
    )
    command.add_argument("--out", type=_path, metavar="FILE", help="write .csv, .json or .sdf too")

    command = add("md", _md, "Molecular dynamics of a structure under a trained potential.")
    command.add_argument("structure", help="a file that ASE reads; FILE@-1 for its last structure")
    command.add_argument("--model", required=True, help="a run of the task forces, or its export")
    command.add_argument("--ensemble", choices=("nvt", "nve"), default="nvt", help="(nvt)")
    command.add_argument("--temperature", type=float, default=300.0, help="in K (300)")
    command.add_argument("--steps", type=int, default=10_000, help="(10,000)")
    command.add_argument("--timestep", type=float, default=0.5, help="in fs (0.5)")
    command.add_argument("--friction", type=float, default=0.01, help="of nvt, in 1/fs (0.01)")
    command.add_argument("--every", type=int, default=10, help="steps between frames (10)")
    command.add_argument("--seed", type=int, default=0, help="of velocities and noise (0)")
    command.add_argument(
        "--max-spread", type=float, metavar="EV_PER_A",
        help="simulate with all seeds of the run; end where they differ by more about a force",
    )  # fmt: skip
    command.add_argument("--out", type=_path, help="a new folder (default: runs/md/ and the file)")

    text = "Our speed beside PyTorch and JAX, in a clone; takes what scripts/benchmark.py does."
    add("benchmark", _benchmark, text)

    command = add("report", _report, "Tables and pictures of runs.")
    command.add_argument("runs", nargs="+", type=_path, help="folders of complete runs of one task")
    command.add_argument("--out", type=_path, help="where they go (default: report/ of the run)")

    command = add("pack", _pack, "Structures as graphs in a folder, which may outgrow the memory.")
    _arguments.pack(command)

    command = add("reproduce", _reproduce, "A table or figure of the paper.")
    _arguments.reproduce(command)
    return parser


def _train(parsed: argparse.Namespace, overrides: Sequence[str]) -> None:
    _use_all_cores()
    from egnn_jax.experiments import config as configs
    from egnn_jax.experiments.run import train

    path = configs.find(parsed.config)
    recipe = configs.load(path)
    if parsed.options:
        overrides = [*overrides, "--help"]
    config = configs.override(recipe, overrides, f"egnn train {path}", _OPTIONS)
    given = {"init": parsed.init, "freeze": parsed.freeze, "init_skip": parsed.init_skip}
    changes = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items() if v}
    if parsed.init == "none":  # instead of the recipe's
        changes |= {"init": None, "init_skip": ()}
    config = dataclasses.replace(config, **changes)
    folder = parsed.run or default_folder(path, configs.differences(recipe, config))
    result = train(config, folder)
    for split, metrics in result["metrics"].items():
        for name, value in metrics.items():
            spread = ""
            if config.seeds > 1:
                spread = f" ± {result['std'][split][name]:.5f} over {config.seeds} seeds"
            unit = config.task.units.get(name, "")
            print(f"{split} {name}: {value:.5f}{spread} {unit}".rstrip())
    if trivial := result.get("trivial"):
        metric = config.task.metric
        print(f"valid {metric} of a trivial answer ({trivial['answer']}): {trivial[metric]:.5f}")
    print(f"best epoch {result['best_epoch']}, {result['seconds']:.0f} s; {folder}/result.json")
    for note in result.get("notes", ()):
        print(f"egnn: note: {note}", file=sys.stderr)
    if result.get("exploded"):
        sys.exit(f"egnn: error: the training exploded; {folder} holds what was good before")


def default_folder(path: Path, changes: dict[str, Any]) -> Path:
    """Where a run goes if its folder is not given: one place for each set of overrides."""
    name = path.stem
    for option, value in changes.items():
        text = "+".join(map(str, value)) if isinstance(value, list) else str(value)
        name += re.sub(r"[^\w.+=,-]", "-", f",{option}={text}")
    return Path("runs") / path.parent.name / name


def _evaluate(parsed: argparse.Namespace, _: Sequence[str]) -> None:
    _use_all_cores()
    from egnn_jax.experiments.run import first_seed, load, summary

    config, network, params = load(parsed.run)
    found = summary(config, network, params)
    found |= config.task.details(network.apply, first_seed(config, params))
    print(json.dumps(found, indent=2, ensure_ascii=False))


def _predict(parsed: argparse.Namespace, _: Sequence[str]) -> None:
    from egnn_jax.experiments.predict import predict

    predict(parsed.sources, parsed.model, parsed.out)


def _md(parsed: argparse.Namespace, _: Sequence[str]) -> None:
    from egnn_jax.experiments.dynamics import Dynamics, simulate

    options = {field.name: getattr(parsed, field.name) for field in dataclasses.fields(Dynamics)}
    name = Path(parsed.structure.partition("@")[0]).name.partition(".")[0]
    folder = parsed.out or Path("runs/md") / name
    found = simulate(parsed.structure, parsed.model, folder, Dynamics(**options))
    drift = ", drift {drift:.4f} meV an atom and ps" if parsed.ensemble == "nve" else ""
    print(("mean {temperature:.1f} K" + drift).format(**found))
    print(f"{found['steps_per_second']:.0f} steps a second; {folder}/trajectory.xyz, dynamics.png")


def _pack(parsed: argparse.Namespace, _: Sequence[str]) -> None:
    from egnn_jax.data.frames import Labels
    from egnn_jax.data.labelled import pack

    names = (field.name for field in dataclasses.fields(Labels))
    labels = Labels(**{name: getattr(parsed, name) for name in names})
    number = pack(parsed.files, parsed.out, labels, parsed.cutoff)
    print(f"{number:,} structures; train on them by --task.train {parsed.out}")


def _benchmark(_: argparse.Namespace, rest: Sequence[str]) -> None:
    script = Path(__file__).parents[1] / "scripts" / "benchmark.py"
    if not script.is_file():
        raise ValueError(
            "the benchmark compares with code that is not in the installed package; expected a "
            "clone of the repository, with pip install -e '.[bench]'"
        )
    os.execv(sys.executable, [sys.executable, str(script), *rest])


def _export(parsed: argparse.Namespace, _: Sequence[str]) -> None:
    from egnn_jax.experiments.export import export

    print(export(parsed.run, parsed.path, parsed.seed))


def _report(parsed: argparse.Namespace, _: Sequence[str]) -> None:
    _use_all_cores()
    from egnn_jax.experiments.report import report

    runs = parsed.runs
    default = runs[0] / "report" if len(runs) == 1 else Path("runs/report")
    for path in report(runs, parsed.out or default):
        if path.suffix == ".md":
            print(path.read_text(encoding="utf-8"))
        print(path)


def _reproduce(parsed: argparse.Namespace, _: Sequence[str]) -> None:
    _use_all_cores()
    from egnn_jax.experiments import reproduce

    given = vars(parsed)
    options = reproduce.Options(parsed.runs, parsed.out, parsed.seeds, given.get("epochs"))
    extra = {
        name: given[name]
        for name in ("only", "quick", "steps", "targets", "model", "together", "half_periods")
        if name in given
    }
    getattr(reproduce, parsed.what.replace("-", "_"))(options, **extra)


def _use_all_cores() -> None:
    os.environ.setdefault("MPLBACKEND", "Agg")
    from egnn_jax.training.distributed import use_all_cores

    use_all_cores()
