"""The command ``egnn``."""

import argparse
import dataclasses
import hashlib
import json
import os
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from egnn_jax._arguments import parser
from egnn_jax._extras import advice, import_plugin
from egnn_jax._launch import launch, process_of_cluster
from egnn_jax._stderr import explain_aborts
from egnn_jax.training.signals import Interrupted, print_to_stderr

LONGEST_NAME = 200
"""The largest number of bytes in the name of a default folder; file systems allow 255."""
_OPTIONS = (
    "Options of this config. --model.name NAME takes another model, in which options of the same "
    "name keep their values."
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command of ``egnn``; on failure, print one sentence and exit with 1."""
    argument_parser = parser()
    parsed, extra_arguments = argument_parser.parse_known_args(arguments)
    if extra_arguments and parsed.command not in ("train", "benchmark"):
        argument_parser.error(f"unrecognized arguments: {' '.join(extra_arguments)}")
    default_format = warnings.formatwarning
    warnings.formatwarning = lambda message, *_, **__: f"egnn: warning: {message}\n"
    try:
        for plugin in parsed.plugin:
            import_plugin(plugin)
        _COMMANDS[parsed.command](parsed, extra_arguments)
        print(end="", flush=True)  # sys.stdout is None if it was closed
    except BrokenPipeError:  # the reader, for example head, has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (Interrupted, KeyboardInterrupt) as stop:
        print_to_stderr(f"egnn: {str(stop) or 'stopped by Ctrl-C'}")
        sys.exit(getattr(stop, "exit_code", 130))
    except (ValueError, FloatingPointError) as error:
        sys.exit(f"egnn: error: {error}")
    except OSError as error:
        prefix = f"{error.filename}: " if error.filename else ""
        sys.exit(f"egnn: error: {prefix}{error.strerror or error}")
    except ImportError as error:
        sys.exit(f"egnn: error: {advice(error)}")
    finally:
        warnings.formatwarning = default_format


def _train(parsed: argparse.Namespace, overrides: Sequence[str]) -> None:
    prints_results = _join(parsed)
    from egnn_jax.experiments import config as configs
    from egnn_jax.experiments.run import train

    path = configs.find(parsed.config)
    recipe = configs.load(path)
    if parsed.options:
        overrides = [*overrides, "--help"]
    config = configs.override(recipe, overrides, f"egnn train {path}", _OPTIONS)
    fine_tuning = {"init": parsed.init, "freeze": parsed.freeze, "init_skip": parsed.init_skip}
    changes: dict[str, Any] = {}
    for option, value in fine_tuning.items():
        if value is not None:
            changes[option] = tuple(value) if isinstance(value, list) else value
    if parsed.init == "none":  # instead of the recipe's
        changes = {"init_skip": ()} | changes | {"init": None}
    config = dataclasses.replace(config, **changes)
    _warn_of_other_training_data(recipe, config)
    folder = parsed.run or default_folder(path, configs.differences(recipe, config))
    result = train(config, folder)
    if not prints_results:
        return
    for split, metrics in result["metrics"].items():
        for name, value in metrics.items():
            std_text = ""
            if config.seeds > 1:
                std_text = f" ± {result['std'][split][name]:.5f} over {config.seeds} seeds"
            unit = config.task.units.get(name, "")
            details = _nested_get(result.get("details"), split, name)
            if isinstance(details, dict) and "mae_of_mean" in details:
                unit += f"mean absolute error; always the mean: {details['mae_of_mean']:.5f}"
            print(f"{split} {name}: {value:.5f}{std_text} {unit}".rstrip())
    if trivial := result.get("trivial"):
        metric = config.task.metric
        print(
            f"valid {metric} of a trivial prediction ({trivial['answer']}): {trivial[metric]:.5f}"
        )
    print(f"best epoch {result['best_epoch']}, {result['seconds']:.0f} s; {folder}/result.json")
    for note in result.get("notes", ()):
        print(f"egnn: note: {note}", file=sys.stderr)
    if result.get("exploded"):
        sys.exit(f"egnn: error: the training exploded; {folder} keeps the best parameters")


def _nested_get(values: Any, *keys: str) -> Any:
    for key in keys:
        values = values.get(key) if isinstance(values, dict) else None
    return values


def _warn_of_other_training_data(recipe: Any, config: Any) -> None:
    """Warn if only the training data differ from the recipe's."""
    changed_splits = {
        split for split in ("train", "valid", "test")
        if getattr(config.task, split, None) != getattr(recipe.task, split, None)
    }  # fmt: skip
    if "train" not in changed_splits:
        return
    for split in ("valid", "test"):
        name = getattr(config.task, split, None)
        if split not in changed_splits and name in config.task.files:
            warnings.warn(
                f"--task.train is not the recipe's, and --task.{split} still is, {name}; expected "
                f"--task.{split} too: a file of the same kind, or a share of the training data "
                "such as 0.1",
                stacklevel=2,
            )


def _join(parsed: argparse.Namespace) -> bool:
    """Use all cores, and join the job if there is one; return whether this process prints."""
    options = {"--coordinator": parsed.coordinator, "--processes": parsed.processes}
    options |= {"--process-id": parsed.process_id}
    missing = [name for name, value in options.items() if value is None]
    is_single = len(missing) == len(options) and process_of_cluster() is None
    is_single |= parsed.processes == 1 and len(missing) == len(options) - 1
    if parsed.options or is_single:
        _use_all_cores()
        return True
    if "--processes" not in missing and parsed.processes < 1:
        raise ValueError(f"--processes is {parsed.processes}; expected 1 or more")
    if 0 < len(missing) < len(options):
        raise ValueError(f"{', '.join(missing)} is missing; expected all of {', '.join(options)}")
    if not missing and not 0 <= parsed.process_id < parsed.processes:
        raise ValueError(
            f"--process-id is {parsed.process_id} of {parsed.processes} processes; expected 0 to "
            f"{parsed.processes - 1}"
        )
    explain_aborts(process_of_cluster() if missing else parsed.process_id, parsed.coordinator)
    _use_all_cores()
    from egnn_jax.training.processes import is_first, join

    join(*options.values())
    if not is_first():
        warnings.simplefilter("ignore")
    return is_first()


def _launch(parsed: argparse.Namespace, _: Sequence[str]) -> None:
    plugins = [argument for plugin in parsed.plugin for argument in ("--plugin", plugin)]
    sys.exit(launch(parsed.number, parsed.arguments, plugins))


def default_folder(path: Path, changes: dict[str, Any]) -> Path:
    """The default folder of a run, a different one for each set of overrides.

    A name that would be too long for a folder ends with a part of its SHA-256.
    """
    name = path.stem
    for option, value in changes.items():
        text = "+".join(map(str, value)) if isinstance(value, list) else str(value)
        name += re.sub(r"[^\w.+=,-]", "-", f",{option}={text}")
    if len(name.encode()) > LONGEST_NAME:
        digest = hashlib.sha256(name.encode()).hexdigest()[:8]
        name = f"{name.encode()[: LONGEST_NAME - 9].decode(errors='ignore')}-{digest}"
    parent = path.parent if path.parent.name != ".." else path.parent.resolve()
    return Path("runs") / parent.name / name


def _evaluate(parsed: argparse.Namespace, _: Sequence[str]) -> None:
    _use_all_cores()
    from egnn_jax._files import finite
    from egnn_jax.experiments.run import first_seed, load, summary
    from egnn_jax.experiments.start import require_same_files

    config, network, params = load(parsed.run)
    require_same_files(config, parsed.run)
    results = summary(config, network, params)
    results |= config.task.details(network.apply, first_seed(config, params))
    print(json.dumps(finite(results), indent=2, ensure_ascii=False))


def _predict(parsed: argparse.Namespace, _: Sequence[str]) -> None:
    from egnn_jax.experiments.predict import predict

    predict(parsed.sources, parsed.model, parsed.out)


def _md(parsed: argparse.Namespace, _: Sequence[str]) -> None:
    from egnn_jax.experiments.dynamics import Dynamics, simulate

    options = {field.name: getattr(parsed, field.name) for field in dataclasses.fields(Dynamics)}
    name = Path(parsed.structure.partition("@")[0]).name.partition(".")[0]
    folder = parsed.out or Path("runs/md") / name
    results = simulate(parsed.structure, parsed.model, folder, Dynamics(**options))
    drift = ", drift {drift:.4f} meV per atom and ps" if parsed.ensemble == "nve" else ""
    print(("mean {temperature:.1f} K" + drift).format(**results))
    speed = f"{results['steps_per_second']:.0f} steps per second, compilation included"
    print(f"{speed}; {folder}/trajectory.xyz, dynamics.png")


def _pack(parsed: argparse.Namespace, _: Sequence[str]) -> None:
    from egnn_jax.data.frames import Labels
    from egnn_jax.data.labelled import pack

    names = (field.name for field in dataclasses.fields(Labels))
    labels = Labels(**{name: getattr(parsed, name) for name in names})
    num_structures = pack(parsed.files, parsed.out, labels, parsed.cutoff)
    print(f"{num_structures:,} structures; train on them by --task.train {parsed.out}")


def _benchmark(_: argparse.Namespace, arguments: Sequence[str]) -> None:
    script = Path(__file__).parents[1] / "scripts" / "benchmark.py"
    if not script.is_file():
        raise ValueError(
            "the benchmark compares with code that is not in the installed package; expected a "
            "clone of the repository, with pip install -e '.[bench]'"
        )
    os.execv(sys.executable, [sys.executable, str(script), *arguments])


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

    arguments = vars(parsed)
    options = reproduce.Options(parsed.runs, parsed.out, parsed.seeds, arguments.get("epochs"))
    extra_options = {
        name: arguments[name]
        for name in ("only", "quick", "steps", "targets", "model", "together", "half_periods")
        if name in arguments
    }
    getattr(reproduce, parsed.what.replace("-", "_"))(options, **extra_options)


def _use_all_cores() -> None:
    os.environ.setdefault("MPLBACKEND", "Agg")
    from egnn_jax.training.distributed import use_all_cores

    use_all_cores()


_COMMANDS: dict[str, Callable[[argparse.Namespace, Sequence[str]], None]] = {
    "train": _train,
    "launch": _launch,
    "evaluate": _evaluate,
    "export": _export,
    "predict": _predict,
    "md": _md,
    "pack": _pack,
    "benchmark": _benchmark,
    "report": _report,
    "reproduce": _reproduce,
}
