"""Trained networks that predict without their data set or run folder."""

import dataclasses
import warnings
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from egnn_jax import _weights
from egnn_jax._files import expanded
from egnn_jax.data.bonds import of_molecules
from egnn_jax.experiments import config as configs
from egnn_jax.experiments._options import short_repr
from egnn_jax.experiments._requirements import require_room
from egnn_jax.experiments._structures import as_list, molecule, require_fitting
from egnn_jax.experiments.config import Config
from egnn_jax.graph._forks import require_usable_jax
from egnn_jax.graph.graph import Edges, Globals, GraphsTuple, Nodes, PaddedGraphsTuple
from egnn_jax.nn.batch_norm import COLLECTION
from egnn_jax.training.parameters import from_names, named

FORMAT = "egnn_jax.model"
VERSION = 1

SHIPPED = {
    name: Path(__file__).parents[1] / "pretrained" / f"{name}.safetensors"
    for name in ("qm9", "qm9-smiles")
}
"""The networks included in this library."""

_FEATURES = {"nodes": Nodes, "edges": Edges, "globals": Globals}
_INDICES = ("receivers", "senders", "n_node", "n_edge")


@dataclasses.dataclass(frozen=True, eq=False)
class Pretrained:
    """A trained network and its metadata, returned by :func:`egnn_jax.load_pretrained`.

    Attributes:
      network: the flax module: the model with the task's head.
      params: its parameters, without an axis of seeds.
      config: the config of the training run; its task has constants, for example means, and needs
        no data set to predict.
      card: plain values: ``units`` of predictions and errors, ``elements`` and ``cutoff`` (Å for
        molecules) if applicable, ``dtype`` of the parameters, ``seed``, ``best_epoch``,
        ``metrics`` (errors by split) and ``versions`` of the training run.
      input: shapes and dtypes of a graph that the network was trained on, or None.
    """

    network: nn.Module
    params: Any = dataclasses.field(repr=False)
    config: Config
    card: Mapping[str, Any] = dataclasses.field(repr=False)
    input: GraphsTuple | None = dataclasses.field(default=None, repr=False)

    def __call__(self, structures: Any) -> Any:
        """Predict properties of molecules, or apply the network to a graph.

        Like ``egnn predict``, this warns of molecules unlike those of the training, if they are
        given as text. Of an object, neither the charge nor the origin of the geometry is known. If
        the network reads bonds, those of an object are perceived from its positions and its charge,
        ``charge`` or, of ASE's ``Atoms``, ``info["charge"]`` (0 by default).

        Args:
          structures: one or several molecules, for tasks that predict properties, or a graph. A
            molecule is an ASE ``Atoms``, another object with ``positions`` (M, 3) in Å and
            ``numbers`` or ``symbols``, or text: a SMILES, an InChI or the path of a file of
            molecules. If it has ``conformers`` (C, M, 3), for example the five of a SMILES,
            predictions are the mean over them.

        Returns:
          Each property (S,) by name, in ``card["units"]``. For a graph, for example
          ``config.task.graph(batch, key)``, the network's output graph; it is compiled once for
          each shape, and whether atoms are of ``card["elements"]`` is not checked.

        Raises:
          ValueError: the task does not predict properties, there are no structures, or one is
            empty, periodic, not finite, unreadable, or has elements that were not in training; a
            graph has other features, attributes or dimensions than in training.
        """
        require_usable_jax()
        if isinstance(structures, GraphsTuple):
            require_fitting(structures, self.input)
            return self._apply(self.params, structures)
        task: Any = self.config.task
        if not hasattr(task, "properties"):
            raise ValueError(
                f"{type(task).__name__} predicts no properties of atoms; expected a graph, or a "
                "network of a task that does, such as QM9 (energies and forces: ASECalculator)"
            )
        molecules = as_list(structures, task)
        geometries, sources, counts = [], [], np.zeros(len(molecules), int)
        for k, structure in enumerate(molecules):
            conformers: Any = getattr(structure, "conformers", None)
            conformers = [structure.positions] if conformers is None else conformers
            conformers = list(conformers) if np.iterable(conformers) else []
            if not conformers:
                raise ValueError(f"structure {k} has no conformers; expected at least one")
            geometries += [molecule(structure, positions, k) for positions in conformers]
            sources += [(f"structure {k}", structure)] * len(conformers)
            counts[k] = len(conformers)
        arrays = (
            np.array([len(numbers) for numbers, _ in geometries]),
            np.concatenate([numbers for numbers, _ in geometries]),
            # Centered, since float32 cannot resolve distances far from the origin.
            np.concatenate([positions - positions.mean(axis=0) for _, positions in geometries]),
        )
        names, structures_of = zip(*sources, strict=True)
        require_room(self.config.model, arrays[0], names.__getitem__)
        options = {}
        if task.reads_bonds:
            options["bonds"] = of_molecules(structures_of, *arrays, names)
        values = task.properties(self._apply, self.params, *arrays, **options)
        means = np.add.reduceat(np.asarray(values), np.cumsum(counts) - counts) / counts[:, None]
        return dict(zip(task.columns, means.T, strict=True))

    def __getstate__(self) -> dict[str, Any]:
        state = {name: value for name, value in vars(self).items() if name != "_apply"}  # compiled
        # On the host, so that forked processes can read them.
        return state | {"params": jax.device_get(self.params)}

    @cached_property
    def _apply(self) -> Any:
        return jax.jit(self.network.apply)


def find(source: Path | str) -> Path:
    """The path of an existing file or folder, or of one of :data:`SHIPPED` by its name.

    Raises:
      ValueError: the source is empty or not a path, or there is no such file.
    """
    if not isinstance(source, str | Path) or not str(source):
        raise ValueError(
            f"the model is {source!r}; expected a path, or one of {', '.join(SHIPPED)}"
        )
    path = SHIPPED.get(str(source)) or expanded(source)
    if not path.exists():
        raise ValueError(
            f"{path}: there is no such file; expected an exported file, the folder of a run, or "
            f"one of {', '.join(SHIPPED)}"
        )
    return path


def write(path: Path, model: Pretrained) -> None:
    """Write a network atomically to a file with everything that :func:`read` needs.

    Raises:
      ValueError: a parameter is not finite, or the network's input cannot be described.
    """
    config = configs.to_dict(model.config)
    if model.config.init is not None:
        config["init"] = Path(model.config.init).name  # the full path means nothing elsewhere
    metadata = {
        "format": FORMAT,
        "format_version": VERSION,
        "config": config,
        "constants": model.config.task.constants(),
        "input": describe(model.input),
        **model.card,
    }
    _weights.write(path, named(model.params), metadata)


def read(path: Path) -> Pretrained:
    """Read the network of a file that :func:`write` wrote; nothing in the file is executed.

    Names of tasks and models are looked up in the registries.

    Raises:
      ValueError: the file is damaged or of another kind, the task or the model is not registered,
        or parameters are missing, left over or misshapen; the message names the path.
    """
    require_usable_jax()
    arrays, metadata = _weights.read(path)
    try:
        if (kind := metadata.pop("format", None)) != FORMAT:
            raise ValueError(f"its format is {short_repr(kind)}; expected {FORMAT!r}")
        if (version := metadata.pop("format_version", None)) != VERSION:
            raise ValueError(f"its format version is {short_repr(version)}; expected {VERSION}")
        for name in ("config", "constants", "input", "units", "metrics", "versions"):
            if not isinstance(metadata.get(name), dict):
                value = short_repr(metadata.get(name))
                raise ValueError(f"{name} in its metadata is {value}; expected values by name")
        config = configs.from_dict(metadata.pop("config"))
        if constants := metadata.pop("constants"):
            config = dataclasses.replace(config, task=config.task.with_constants(constants))
        network, graph = config.network(), abstract(metadata.pop("input"))
        params = _params_from(network, arrays, graph)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    except (TypeError, KeyError, AttributeError, IndexError, OverflowError) as error:
        raise ValueError(f"{path}: its metadata are invalid ({error!r})") from error
    warn_of_explosion(path, metadata)
    return Pretrained(network, jax.device_put(params), config, metadata, graph)


def warn_of_explosion(path: Path, record: Mapping[str, Any]) -> None:
    """Warn if a result or a card says that training exploded."""
    if record.get("exploded"):
        text = f"{path}: its training exploded, and what it predicts may be worth nothing"
        warnings.warn(text, stacklevel=3)


def describe(graph: GraphsTuple | None) -> dict[str, Any]:
    """Describe shapes and dtypes of a graph as plain values; the inverse of :func:`abstract`.

    Raises:
      ValueError: it is not a graph of this library.
    """
    types = [type(getattr(graph, name, None)) for name in _FEATURES]
    if graph is None or types != list(_FEATURES.values()):
        raise ValueError(
            f"the network's input is a {type(graph).__name__} of {[t.__name__ for t in types]}; "
            f"expected a GraphsTuple of {[t.__name__ for t in _FEATURES.values()]}"
        )
    result: dict[str, Any] = {"padded": isinstance(graph, PaddedGraphsTuple)}
    for name in _FEATURES:
        features = getattr(graph, name)
        fields = dataclasses.fields(features)
        arrays = {field.name: getattr(features, field.name) for field in fields}
        result[name] = {
            key: [str(a.dtype), list(a.shape)] for key, a in arrays.items() if a is not None
        }
    for name in _INDICES:
        array = getattr(graph, name)
        result[name] = [str(array.dtype), list(array.shape)]
    return result


def abstract(described: Any) -> GraphsTuple:
    """Make the abstract graph, of shapes without values, that :func:`describe` described.

    Raises:
      ValueError: ``described`` does not describe a graph.
    """
    try:
        features: dict[str, Any] = {}
        for name, cls in _FEATURES.items():
            required: dict[str, Any] = {"h": None, "x": None} if cls is Nodes else {}
            arrays = {key: _abstract_array(array) for key, array in described[name].items()}
            features[name] = cls(**(required | arrays))
        indices: dict[str, Any] = {name: _abstract_array(described[name]) for name in _INDICES}
        graph_class = PaddedGraphsTuple if described["padded"] is True else GraphsTuple
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"input is {short_repr(described)}; expected shapes of a graph") from error
    fields: dict[str, Any] = features | indices
    return graph_class(**fields)


def _abstract_array(described: Any) -> jax.ShapeDtypeStruct:
    dtype, shape = described
    if dtype not in (*_weights.DTYPES, "bfloat16"):
        raise ValueError(f"a dtype is {short_repr(dtype)}; expected that of numbers")
    if len(shape) > 4 or not all(type(n) is int and 0 <= n < 2**31 for n in shape):
        raise ValueError(f"a shape is {short_repr(shape)}; expected up to four sizes")
    return jax.ShapeDtypeStruct(tuple(shape), jax.dtypes.canonicalize_dtype(dtype))


def _params_from(network: nn.Module, arrays: Mapping[str, np.ndarray], graph: GraphsTuple) -> Any:
    """The tree of a network's parameters from arrays by name, none missing or left over."""
    tree: dict[str, Any] = {}
    for name, array in sorted(arrays.items()):
        *path, leaf = name.split("/")
        if path[:1] != [COLLECTION]:
            path = ["params", *path]
        subtree = tree
        for key in path:
            subtree = subtree.setdefault(key, {})
            if not isinstance(subtree, dict):
                raise ValueError(f"{name} is inside another parameter; expected a tree of names")
        subtree[leaf] = jax.ShapeDtypeStruct(
            array.shape, jax.dtypes.canonicalize_dtype(array.dtype)
        )
    try:
        # First with the file's own parameters: this stops at the first missing one, so that a
        # config with a million layers costs nothing.
        jax.eval_shape(network.apply, tree, graph)
        template = jax.eval_shape(network.init, jax.random.key(0), graph)
    except Exception as error:  # bad options and parameters can raise exceptions of any type
        raise ValueError(
            f"the network does not fit its parameters: {short_repr(str(error))}"
        ) from error
    return from_names(arrays, template)
