"""Pictures and tables of finished runs: loss curves, predictions, errors beside the paper's.

python scripts/report.py runs/nbody/egnn runs/nbody/gnn
"""

import argparse
import sys
from pathlib import Path

import matplotlib as mpl


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="folders of finished runs of one task"
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="where to write (default: RUN/report for one run, runs/report for several)",
    )
    arguments = parser.parse_args()
    mpl.use("Agg")
    from egnn_jax.experiments.report import report

    out = arguments.out or (
        arguments.runs[0] / "report" if len(arguments.runs) == 1 else Path("runs/report")
    )
    written = report(arguments.runs, out)
    for path in written:
        print(f"{path.read_text()}\n{path}" if path.suffix == ".md" else path)


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(f"report.py: error: {error}")
