"""Registries of models and tasks, to which users can add their own by name.

Use a decorator in your own module::

    @egnn.MODELS.register("mine")
    class Mine(nn.Module): ...

or, in an installed package, an entry point of the group ``egnn_jax.models`` or
``egnn_jax.tasks`` in its ``pyproject.toml``. Registered names work in YAML, on the command line
(with ``--plugin mine.py`` for the decorator), in checkpoints and in reports.
"""

import importlib.metadata
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from typing import Any, TypeVar

T = TypeVar("T", bound=type)


class Registry(Mapping[str, type]):
    """A mapping from names to classes, which are imported at first use.

    Args:
      kind: what to call the classes in messages.
      group: the entry-point group for other packages.
      builtin: this library's own classes, as ``module:class`` by name.
    """

    def __init__(self, kind: str, group: str, builtin: Mapping[str, str]) -> None:
        self._kind, self._group = kind, group
        self._builtin = dict(builtin)
        self._classes: dict[str, type] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that registers a class under ``name``.

        Raises:
          ValueError: the name is not a nonempty string or is taken by another class, or the
            decorated object is not a class.
        """
        if not isinstance(name, str) or not name:
            raise ValueError(
                f"the name of a {self._kind} is {name!r}; expected text: @register('name')"
            )

        def decorate(cls: T) -> T:
            if not isinstance(cls, type):
                raise ValueError(f"{cls!r} is registered as {name!r}; expected a class")
            existing = self._classes.get(name)
            # Running a notebook cell again makes a new class each time.
            is_redefinition = existing is not None and existing.__qualname__ == cls.__qualname__
            if name in self._builtin or (existing is not None and not is_redefinition):
                raise ValueError(f"the {self._kind} {name!r} exists; expected another name")
            self._classes[name] = cls
            return cls

        return decorate

    def name_of(self, cls: type) -> str:
        """The name of a class; the class itself must be registered, not only a parent.

        Raises:
          ValueError: the class is not registered.
        """
        for name, registered in self._classes.items():
            if registered is cls:
                return name
        class_path = f"{cls.__module__}:{cls.__qualname__}"
        for name, builtin_path in self._builtin.items():
            if builtin_path == class_path:
                return name
        for name, entry_point in self._entry_points().items():
            if entry_point.value == class_path:
                return name
        raise ValueError(
            f"{cls.__qualname__} is not a registered {self._kind}; expected one of {sorted(self)}, "
            f"or register yours: @egnn_jax.{self._kind.upper()}S.register('name')"
        )

    def __getitem__(self, name: str) -> type:
        if name not in self._classes:
            if name in self._builtin:
                module, _, cls = self._builtin[name].partition(":")
                self._classes[name] = getattr(import_module(module), cls)
            else:
                self._classes[name] = self._entry_points()[name].load()
        return self._classes[name]

    def __contains__(self, name: object) -> bool:
        return any(name == registered for registered in self)

    def __iter__(self) -> Iterator[str]:
        return iter({**self._builtin, **self._classes, **self._entry_points()})

    def __len__(self) -> int:
        return len(list(iter(self)))

    def _entry_points(self) -> dict[str, Any]:
        return {e.name: e for e in importlib.metadata.entry_points(group=self._group)}


MODELS = Registry(
    "model",
    "egnn_jax.models",
    {
        "egnn": "egnn_jax.models.egnn:EGNN",
        "gnn": "egnn_jax.models.gnn:GNN",
        "radial_field": "egnn_jax.models.radial_field:RadialField",
        "tfn": "egnn_jax.models.tfn:TFN",
        "tfn_fuchs": "egnn_jax.models.fuchs:FuchsTFN",
        "painn": "egnn_jax.models.painn:PaiNN",
        "dimenetpp": "egnn_jax.models.dimenetpp:DimeNetPP",
        "lieconv": "egnn_jax.models.lieconv:LieConv",
        "nmp": "egnn_jax.models.nmp:NMP",
        "schnet": "egnn_jax.models.schnet:SchNet",
        "tensornet": "egnn_jax.models.tensornet:TensorNet",
        "cormorant": "egnn_jax.models.cormorant:Cormorant",
        "l1net": "egnn_jax.models.l1net:L1Net",
        "se3_transformer": "egnn_jax.models.se3_transformer:SE3Transformer",
        "se3_transformer_fuchs": "egnn_jax.models.fuchs:FuchsSE3Transformer",
        "linear": "egnn_jax.models.linear:Linear",
        "learned_dynamics": "egnn_jax.potentials.learned_dynamics:LearnedDynamics",
    },
)
"""The models for a config's ``model.name``: flax modules that map a graph to a graph."""

TASKS = Registry(
    "task",
    "egnn_jax.tasks",
    {
        "nbody": "egnn_jax.experiments.nbody:NBody",
        "autoencoder": "egnn_jax.experiments.autoencoder:GraphAutoencoder",
        "forces": "egnn_jax.experiments.forces:Forces",
        "qm9": "egnn_jax.experiments.qm9:QM9",
        "qm9_properties": "egnn_jax.experiments.qm9_properties:QM9Properties",
        "table": "egnn_jax.experiments.property_table:Table",
    },
)
"""The tasks for a config's ``task.name``, see :class:`egnn_jax.Task`."""
