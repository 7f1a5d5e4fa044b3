"""Two CPU devices, so that spreading a batch is tested; data made once; warnings are errors (pyproject.toml)."""

import os
from pathlib import Path

import jax
import numpy as np
import pytest

jax.config.update("jax_num_cpu_devices", 2)

GOLDEN = Path(__file__).parent / "data" / "golden"


def pytest_addoption(parser):
    parser.addoption("--golden", type=Path, default=GOLDEN, help="the folder whose *.npz files test_golden.py checks")


def pytest_generate_tests(metafunc):
    if "golden_file" in metafunc.fixturenames:
        folder = metafunc.config.getoption("--golden")
        files = sorted(folder.glob("*.npz"))
        if not files:
            raise pytest.UsageError(f"--golden {folder} holds no *.npz files")
        metafunc.parametrize("golden_file", files, ids=lambda path: path.stem)


@pytest.fixture(scope="session", autouse=True)
def data_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    os.environ["EGNN_JAX_DATA"] = str(folder)
    return folder


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield
