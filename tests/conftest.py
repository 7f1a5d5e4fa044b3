"""Two CPU devices, so that spreading a batch is tested; data made once; warnings are errors
(pyproject.toml).
"""

import gc
import os
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import settings

from egnn_jax.training.distributed import use_all_cores

use_all_cores()  # with the flags of training
jax.config.update("jax_num_cpu_devices", 2)

# What one test, worker, child process or earlier session compiled, no other compiles again.
CACHE = {
    "jax_compilation_cache_dir": str(Path(__file__).parent.parent / ".pytest_cache" / "xla"),
    "jax_persistent_cache_min_compile_time_secs": 0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
}
for name, value in CACHE.items():
    jax.config.update(name, value)
    os.environ[name.upper()] = str(value)
# Several processes share the cores, and threads of OpenMP that wait for one keep it busy.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"  # XLA warns of each program that it takes from there

gc.set_threshold(50_000, 20, 20)  # tracing makes many objects, of which few are garbage

settings.register_profile("some", max_examples=25, deadline=None)
settings.register_profile("many", max_examples=150, deadline=None)
settings.load_profile("some")

GOLDEN = Path(__file__).parent / "data" / "golden"


def pytest_addoption(parser):
    parser.addoption(
        "--golden",
        type=Path,
        default=GOLDEN,
        help="the folder whose *.npz files test_golden*.py check",
    )


def pytest_generate_tests(metafunc):
    if "golden_file" in metafunc.fixturenames:
        folder = metafunc.config.getoption("--golden")
        files = sorted(folder.glob("*.npz"))
        if not files:
            raise pytest.UsageError(f"--golden {folder} holds no *.npz files")
        # Each of test_golden*.py says what the names of its files begin with.
        own = tuple(metafunc.module.NETWORKS)
        files = [path for path in files if path.stem.startswith(own)]
        slow = getattr(metafunc.module, "SLOW", ())
        cases = [
            pytest.param(p, id=p.stem, marks=pytest.mark.slow if p.stem in slow else ())
            for p in files
        ]
        metafunc.parametrize("golden_file", cases)


@pytest.fixture(scope="session", autouse=True)
def data_folder(tmp_path_factory):
    # Of all workers of a session: whoever comes first makes a data set.
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "data"
    folder.mkdir(exist_ok=True)
    os.environ["EGNN_JAX_DATA"] = str(folder)
    return folder


@pytest.fixture(scope="module", autouse=True)
def light():
    """Forgets what a module has traced: Python looks through all of it again and again."""
    yield
    jax.clear_caches()
    gc.collect()


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield
