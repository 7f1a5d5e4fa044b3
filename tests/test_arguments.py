"""What ``fit``, ``evaluate``, data sets and registries say of arguments that make no sense."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import egnn_jax as egnn
from tests.helpers import labelled_graphs


def data(size=8):
    x = np.random.default_rng(0).standard_normal((size, 3)).astype(np.float32)
    return egnn.ArrayDataset({"x": x, "y": x.sum(axis=1)})


def loss(params, batch, key):
    return jnp.mean((batch["x"] @ params["w"] - batch["y"]) ** 2), {"norm": jnp.sum(params["w"])}


def fit(**changes):
    arguments = {
        "loss": loss, "params": {"w": jnp.zeros(3)}, "train": data().loader(4),
        "valid": data().loader(4), "optimizer": optax.sgd(0.1), "epochs": 2, "callbacks": (),
    }  # fmt: skip
    return egnn.fit(**arguments | changes)


class Nothing:
    """No callback: it has none of the methods."""


def returning(value):
    return lambda params, batch, key: value(*loss(params, batch, key))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"loss": returning(lambda v, m: v)},
            r"returned float32\[\]; expected \(scalar, metrics\)",
        ),
        ({"loss": egnn.EGNN()}, "the loss is a EGNN; expected a function"),
        ({"loss": returning(lambda v, m: None)}, "the loss returned None; expected"),
        ({"loss": returning(lambda v, m: (v, 3))}, r"expected \(scalar, metrics\)"),
        ({"loss": returning(lambda v, m: (v[None], m))}, r"the loss is float32\[1\]; expected a"),
        ({"loss": returning(lambda v, m: (v.astype(int), m))}, r"the loss is int32\[\]; expected"),
        ({"metrics": returning(lambda v, m: v)}, r"metrics returned \(\); expected a dict"),
        ({"monitor": "mae"}, r"monitor is 'mae'; expected one of \['loss', 'norm'\]"),
        ({"epochs": 0}, "epochs is 0; expected at least 1"),
        ({"epochs": 1.5}, "epochs is 1.5; expected a whole number"),
        ({"epochs": "2"}, "epochs is '2'; expected a whole number"),
        ({"epochs": True}, "epochs is True; expected a whole number"),
        ({"chunk_steps": 0.5}, "chunk_steps is 0.5; expected a whole number"),
        ({"checkpoint_seconds": float("nan")}, "checkpoint_seconds is nan; expected 0 or more"),
        ({"micro_batches": 3}, "micro_batches is 3; expected a divisor of the batch_size 4"),
        ({"checkpoint_seconds": None}, "checkpoint_seconds is None; expected a number"),
        ({"ema_decay": "0.9"}, "ema_decay is '0.9'; expected a number"),
        ({"ema_decay": 1.0}, "ema_decay is 1.0; expected a number from 0 to below 1"),
        ({"seed": -1}, "seed is -1; expected at least 0"),
        ({"seed": 0.5}, "seed is 0.5; expected a whole number"),
        ({"seed": 2**32}, f"seed is {2**32}; expected 0 to {2**32 - 1}"),
        ({"seeds": 2}, r"parameter w has shape \(3,\); expected a leading axis of 2 seeds"),
        ({"params": None}, "params are None; expected a tree of arrays, as from model.init"),
        ({"params": {"w": jnp.zeros(3, int)}}, "parameter w is int32; expected floating-point"),
        ({"train": data()}, r"train is a ArrayDataset; expected a loader, such as dataset.loader"),
        ({"valid": [1, 2]}, "valid is a list; expected a loader"),
        ({"optimizer": "adam"}, "optimizer is 'adam'; expected an optax gradient transformation"),
        ({"optimizer": optax.adam}, "optimizer is <function adam.*; expected an optax gradient"),
        ({"callbacks": egnn.ProgressBar()}, "callbacks are .*; expected a list"),
        ({"callbacks": [egnn.ProgressBar]}, "a callback is <class .*; expected an object with"),
        ({"callbacks": [Nothing()]}, "a callback is .*Nothing.*; expected an object with some of"),
        ({"settings": {"a": object()}}, "settings.a is a object; expected text, a number"),
    ],
)
def test_fit(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        fit(folder=tmp_path / "run", **changes)
    assert not list(tmp_path.glob("run/[a-z]*"))  # nothing but the lock


def test_evaluate():
    params = {"w": jnp.zeros(3)}
    with pytest.raises(ValueError, match="loader is a ArrayDataset; expected a loader"):
        egnn.evaluate(loss, params, data())
    with pytest.raises(ValueError, match=r"expected \(scalar, metrics\)"):
        egnn.evaluate(returning(lambda v, m: v), params, data().loader(4))
    for seed in (-1, 0.5, "1", 2**32, 2**63):
        with pytest.raises(ValueError, match=f"seed is '?{seed}'?; expected"):
            egnn.evaluate(loss, params, data().loader(4), seed=seed)
    found = egnn.evaluate(
        returning(lambda v, m: (v, {"both": jnp.arange(2.0)})), params, data().loader(32)
    )
    assert found["both"] == [0, 1]  # also where one batch is larger than the data set


def test_batches_and_patience():
    for size, message in ((0, "is 0; expected at least 1"), (2.5, "is 2.5; expected a whole")):
        with pytest.raises(ValueError, match=f"batch_size {message}"):
            data().loader(size)
    for seed in (-1, 1.5):
        with pytest.raises(ValueError, match=f"seed is {seed}; expected"):
            data().loader(4, seed=seed)
        with pytest.raises(ValueError, match=f"seed is {seed}; expected"):
            egnn.GraphDataset([egnn.complete_graph(np.eye(3))]).split(0.5, seed=seed)
    with pytest.raises(ValueError, match="patience is '3'; expected a number"):
        egnn.EarlyStopping("3")


FLAT = {"n_node": np.array([3, 2]), "nodes": egnn.Nodes(h=np.zeros((5, 1)), x=np.zeros((5, 3)))}
LISTS = np.array([2, 1]), np.array([1, 2, 1]), np.array([0, 0, 0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_node": np.array([3.0, 2.0])}, "n_node is array.*; expected whole numbers"),
        ({"n_node": np.array([-1, 6])}, "n_node is array.*; expected whole numbers"),
        ({"n_node": np.array([3, 3])}, "nodes h has 5 rows; expected 6"),
        ({"edges": egnn.Edges(a=np.zeros((3, 1)))}, "edges a has 3 rows; expected 8"),
        ({"globals_": egnn.Globals(y=np.zeros((3, 1)))}, "globals_ y has 3 rows; expected 2"),
        ({"edge_lists": (LISTS[0], LISTS[1][:2], LISTS[2])}, "edge_lists 0 has 2 rows; expected 3"),
        ({"edge_lists": (LISTS[0][:1], *LISTS[1:])}, "edge_lists .* has 3 rows; expected 2"),
        (
            {"edge_lists": (LISTS[0], np.array([1, 2, 2]), LISTS[2])},
            "senders of edge 2 is 2, in a graph of 2 nodes",
        ),
        (
            {"edge_lists": (LISTS[0], LISTS[1], np.array([1, 0, 0]))},
            "receivers of edges 0 and after are not in order",
        ),
    ],
)
def test_flat_arrays(changes, message):
    assert len(egnn.GraphDataset.from_arrays(**FLAT, edge_lists=LISTS)) == 2
    with pytest.raises(ValueError, match=message):
        egnn.GraphDataset.from_arrays(**FLAT | changes)


def test_graphs_that_are_none():
    graph = labelled_graphs(1)[0]
    with pytest.raises(ValueError, match="graphs is one graph; expected a list of graphs"):
        egnn.GraphDataset(graph)  # instead of a list of graphs
    with pytest.raises(ValueError, match="graph 1 is a str; expected a GraphsTuple"):
        egnn.GraphDataset([graph, "water"])


def test_names_of_models():
    with pytest.raises(ValueError, match=r"is <class .*; expected text: @register\('name'\)"):
        egnn.MODELS.register(Nothing)
    with pytest.raises(ValueError, match="is registered as 'mine'; expected a class"):
        egnn.MODELS.register("mine")(lambda graph: graph)
    assert "mine" not in egnn.MODELS


def test_a_run_is_not_continued_with_another_number_in_loss_or_optimizer(tmp_path):
    """Both look alike from outside: a function of the same name, a chain of the same parts."""

    def scaled(factor):
        return lambda params, batch, key: (factor * loss(params, batch, key)[0], {})

    first = fit(folder=tmp_path, loss=scaled(2.0))
    again = fit(folder=tmp_path, loss=scaled(2.0))
    np.testing.assert_array_equal(first.params["w"], again.params["w"])
    with pytest.raises(ValueError, match=r"other settings \(compiled.loss"):
        fit(folder=tmp_path, loss=scaled(3.0))
    with pytest.raises(ValueError, match=r"other settings \(compiled.optimizer"):
        fit(folder=tmp_path, loss=scaled(2.0), optimizer=optax.sgd(0.2))
    with pytest.raises(ValueError, match=r"other settings \(first_batch"):
        fit(folder=tmp_path, loss=scaled(2.0), train=data(9).loader(4))


def test_a_run_of_another_version_of_jax_is_continued(tmp_path, monkeypatch):
    fit(folder=tmp_path)
    monkeypatch.setattr(jax, "__version__", "0.99")
    fit(folder=tmp_path, optimizer=optax.sgd(0.2))  # its program cannot be compared
    with pytest.raises(ValueError, match="epochs 2 -> 3"):
        fit(folder=tmp_path, epochs=3)


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.lbfgs(),
        optax.chain(optax.adam(1e-2), optax.contrib.reduce_on_plateau(patience=1)),
        optax.contrib.schedule_free_adamw(1e-2),
        optax.contrib.sam(optax.sgd(0.1), optax.sgd(0.1)),
        optax.MultiSteps(optax.adam(1e-2), 2),
        optax.lion(1e-2),
    ],
    ids=["lbfgs", "plateau", "schedule_free", "sam", "multi_steps", "lion"],
)
def test_optimizers_that_take_more_than_gradients(tmp_path, optimizer):
    before = egnn.evaluate(loss, {"w": jnp.zeros(3)}, data().loader(4))["loss"]
    result = fit(optimizer=optimizer, epochs=4, folder=tmp_path)
    assert result.best_value < before


def test_a_callback_needs_no_base_class():
    class Printer:
        def evaluated(self, progress):
            self.epoch = progress.epoch

    printer = Printer()
    fit(callbacks=[printer])
    assert printer.epoch == 2


def test_without_validation_there_is_no_best_value():
    assert np.isnan(fit(valid=None).best_value)
