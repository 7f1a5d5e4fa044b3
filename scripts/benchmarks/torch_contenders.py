"""PyTorch contenders of ``make benchmark``: training step and forward pass of the peers.

Training is the authors' loop of single steps, excluding what does not belong to the network:
loading data, building edge lists and reading the loss.
"""

import functools
import sys
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import torch
from benchmarks import torch_cases
from benchmarks.inputs import Inputs, Unavailable
from benchmarks.torch_cases import DEVICE, Case, tensor
from torch import Tensor, nn

from egnn_jax import interop
from egnn_jax._launch import number_of_cores
from egnn_jax.experiments.autoencoder import GraphAutoencoder
from egnn_jax.experiments.nbody import NBody
from egnn_jax.experiments.qm9 import QM9

CASE_OF_TASK = {
    NBody: torch_cases.nbody,
    GraphAutoencoder: torch_cases.autoencoder,
    QM9: torch_cases.qm9,
}


@functools.cache
def case_of(inputs: Inputs) -> tuple[Case, list[SimpleNamespace]]:
    """The PyTorch case, and its batches, converted from ours."""
    torch.set_num_threads(number_of_cores())
    if DEVICE.type == "cuda":
        torch.set_float32_matmul_precision("high")  # what JAX does there by default
    case = CASE_OF_TASK[type(inputs.task)](inputs.task)
    return case, [case.load(inputs.samples.pack(rows)) for rows in inputs.rows(1)[:, 0]]


@functools.cache
def network_of(
    inputs: Inputs, name: str, reference: str | None
) -> tuple[nn.Module, Callable[[nn.Module, SimpleNamespace], Tensor]]:
    """Return a network with our parameters, and the function that calls it.

    egnn-pytorch is a different network and keeps its own parameters.

    Raises:
      Unavailable: the checkout is not the authors' repository.
    """
    case, _ = case_of(inputs)
    torch.manual_seed(0)
    if name == "egnn_pytorch":
        return case.dense().to(DEVICE), case.predict_dense
    if name == "reference":
        sys.path.insert(0, str(reference))
        try:
            network = case.checkout()
        except (ImportError, AttributeError) as error:
            raise Unavailable(
                f"{reference} is no checkout of the authors' repository: {error}"
            ) from error
    else:
        network = case.authors().to(DEVICE)
    state = interop.to_torch_state_dict(inputs.state.params, inputs.network)
    network.load_state_dict({key: tensor(value) for key, value in state.items()})
    if name == "torch_compiled":
        network = torch.compile(network, dynamic=not isinstance(inputs.task, NBody))
    return network, case.predict


def contender(inputs: Inputs, part: str, name: str, reference: str | None) -> Callable[[], None]:
    """Return a function that runs a training step, or a forward pass, for every batch."""
    case, batches = case_of(inputs)
    network, predict = network_of(inputs, name, reference)
    settings = inputs.config.optimizer
    optimizer = torch.optim.Adam(
        network.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
    )

    def train() -> None:
        for batch in batches:
            optimizer.zero_grad()
            case.loss(predict(network, batch), batch).backward()
            optimizer.step()
        finish()

    def forward() -> None:
        with torch.no_grad():
            for batch in batches:
                predict(network, batch)
        finish()

    return train if part == "train_step" else forward


def finish() -> None:
    """Wait for the device to finish."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def first_output(inputs: Inputs, name: str, reference: str | None) -> tuple[np.ndarray, float]:
    """Output and loss of the first batch, with the same noise as our network."""
    case, (batch, *_) = case_of(inputs)
    network, predict = network_of(inputs, name, reference)
    batch_copy = SimpleNamespace(**vars(batch))
    if isinstance(inputs.task, GraphAutoencoder):
        batch_copy.noise = tensor(inputs.noise()[: len(batch.h)])
    with torch.no_grad():
        output = predict(network, batch_copy)
        return output.cpu().numpy(), float(case.loss(output, batch_copy))
