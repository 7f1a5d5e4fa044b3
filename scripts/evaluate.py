"""Evaluate the best checkpoint of a run on the validation and test splits, e.g.: python
scripts/evaluate.py runs/nbody/egnn
"""

import argparse
import json
import sys

from egnn_jax.training.evaluation import Evaluation, summary
from egnn_jax.training.fit import first_seed, load
from egnn_jax.training.step import use_all_cores


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("run", help="the folder of a run")
    use_all_cores()
    config, model, params = load(parser.parse_args().run)
    found = summary(Evaluation(config.task, model, config), params) | config.task.details(
        model.apply, first_seed(config, params)
    )
    print(json.dumps(found, indent=2, ensure_ascii=False))


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(f"evaluate.py: error: {error}")
