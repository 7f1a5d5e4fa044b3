"""Reproduce a table or figure of the paper, e.g.: python scripts/reproduce.py table2"""

import sys

from egnn_jax.experiments.reproduce import main
from egnn_jax.training.fit import Interrupted

if __name__ == "__main__":
    try:
        main()
    except Interrupted as stop:
        sys.exit(f"reproduce.py: {stop}")
    except (ValueError, FloatingPointError) as error:
        sys.exit(f"reproduce.py: error: {error}")
