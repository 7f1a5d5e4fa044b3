"""``egnn evaluate`` from an uninstalled clone: python scripts/evaluate.py --help"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from egnn_jax.cli import main

if __name__ == "__main__":
    main(["evaluate", *sys.argv[1:]])
