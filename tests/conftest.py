"""Two CPU devices, so that spreading a batch is tested; data made once; warnings are errors (pyproject.toml)."""

import os

import jax
import numpy as np
import pytest

jax.config.update("jax_num_cpu_devices", 2)


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
