"""Train a model as a config says, e.g.: python scripts/train.py configs/nbody/egnn.yaml --epochs
300 --seeds 4
"""

import argparse
import sys
from pathlib import Path

from egnn_jax.experiments import config as configs
from egnn_jax.training.fit import Interrupted, fit
from egnn_jax.training.logging import show_progress
from egnn_jax.training.step import use_all_cores


def main() -> None:
    use_all_cores()
    show_progress()
    parser = argparse.ArgumentParser(
        description=__doc__, add_help=False, usage="train.py CONFIG [--run FOLDER] [overrides]"
    )
    parser.add_argument(
        "config", help="a YAML file; CONFIG --help shows its options and their defaults"
    )
    parser.add_argument(
        "--run",
        type=Path,
        help="the folder to train in (default: runs/ and the config's folder and name)",
    )
    if sys.argv[1:2] in ([], ["-h"], ["--help"]):
        parser.print_help()
        return
    arguments, overrides = parser.parse_known_args()
    path = Path(arguments.config)
    run = arguments.run or Path("runs") / path.parent.name / path.stem
    about = f"{__doc__}\n\n--run FOLDER: the folder to train in (default: {run})"
    config = configs.override(configs.load(path), overrides, f"train.py {path}", about)
    result = fit(config.task, configs.build_model(config), config, run)
    for split, metrics in result["metrics"].items():
        for name, value in metrics.items():
            spread = (
                f" ± {result['std'][split][name]:.5f} over {config.seeds} seeds"
                if config.seeds > 1
                else ""
            )
            print(f"{split} {name}: {value:.5f}{spread} {config.task.units.get(name, '')}".rstrip())
    print(f"best epoch {result['best_epoch']}, {result['seconds']:.0f} s; {run}/result.json")


if __name__ == "__main__":
    try:
        main()
    except Interrupted as stop:
        sys.exit(f"train.py: {stop}")
    except (ValueError, FloatingPointError) as error:
        sys.exit(f"train.py: error: {error}")
