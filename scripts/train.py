"""``egnn train`` from an uninstalled clone: python scripts/train.py --help"""

import sys

from egnn_jax.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
