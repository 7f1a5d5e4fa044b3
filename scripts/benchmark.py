"""Benchmark our networks against PyTorch and plain JAX: make benchmark"""

import sys
from concurrent.futures.process import BrokenProcessPool

from benchmarks.run import main

from egnn_jax.training.signals import Interrupted

if __name__ == "__main__":
    try:
        main()
    except (Interrupted, KeyboardInterrupt) as stop:
        sys.exit(f"benchmark.py: {stop or 'stopped; what was measured is kept'}")
    except BrokenProcessPool:
        sys.exit("benchmark.py: error: a worker was killed, most likely for want of memory")
    except (ValueError, FloatingPointError, OSError) as error:
        sys.exit(f"benchmark.py: error: {error}")
