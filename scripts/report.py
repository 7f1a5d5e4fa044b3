"""``egnn report`` from an uninstalled clone: python scripts/report.py --help"""

import sys

from egnn_jax.cli import main

if __name__ == "__main__":
    main(["report", *sys.argv[1:]])
