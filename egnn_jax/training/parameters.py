"""Parameters by name: starting from trained ones, and leaving some of them as they are.

The name of a parameter is its path in the tree, joined by "/", without the collection "params" of
flax: ``encoder/layer_0/phi_e/kernel``. A pattern is a name with the wildcards of
:mod:`fnmatch`: ``*`` any text, "/" included, ``?`` one character, ``[01]`` one of these; after a
``!`` it stands for all other names.
"""

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

_MAX_LISTED = 2_000


def named(params: Any) -> dict[str, Any]:
    """The arrays of a tree of parameters by name.

    Raises:
      ValueError: two arrays have one name.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    result = {_name(path): leaf for path, leaf in leaves}
    if len(result) < len(leaves):
        raise ValueError("two parameters have one name; expected a name for each")
    return result


def from_names(arrays: Mapping[str, Any], like: Any) -> Any:
    """A tree with the structure and dtypes of ``like`` of arrays by name.

    Raises:
      ValueError: arrays are missing, left over or misshapen (all of them are listed).
    """
    expected = named(like)
    if problems := _misfits(arrays, expected):
        raise ValueError(_listed(problems))
    values = {name: _cast(array, expected[name]) for name, array in arrays.items()}
    return jax.tree_util.tree_map_with_path(lambda path, _: values[_name(path)], like)


def transfer(arrays: Mapping[str, Any], new: Any, skip: Sequence[str] = ()) -> Any:
    """New parameters with the values of trained ones of the same name and shape.

    Args:
      arrays: trained parameters by name, as :func:`named` gives them.
      new: new parameters, a tree of arrays.
      skip: patterns of parameters that stay new; what matches is ignored in ``arrays`` too.

    Returns:
      A tree with the structure and dtypes of ``new``.

    Raises:
      ValueError: parameters are missing, left over or misshapen (all of them are listed), or a
        pattern matches none.
    """
    values = named(new)
    skipped = matching([*values, *(name for name in arrays if name not in values)], skip)
    given = {name: array for name, array in arrays.items() if name not in skipped}
    expected = {name: array for name, array in values.items() if name not in skipped}
    if problems := _misfits(given, expected):
        raise ValueError(
            f"{_listed(problems)}; expected the parameters of the same network, or patterns "
            "(init_skip) of those that are to stay new"
        )
    values |= {name: _cast(array, values[name]) for name, array in given.items()}
    return jax.tree_util.tree_map_with_path(lambda path, _: values[_name(path)], new)


def freeze(
    optimizer: optax.GradientTransformation, patterns: str | Sequence[str]
) -> optax.GradientTransformation:
    """An optimizer that leaves some parameters exactly as they are.

    Frozen parameters get no updates, no weight decay and no state, and their gradients do not
    count towards a clipped norm.

    >>> optimizer = egnn.freeze(optax.sgd(1.0), ["encoder/*"])
    >>> params = {"encoder": {"w": jnp.ones(1)}, "head": {"w": jnp.ones(1)}}
    >>> updates, _ = optimizer.update(params, optimizer.init(params), params)
    >>> after = optax.apply_updates(params, updates)
    >>> after["encoder"]["w"].item(), after["head"]["w"].item()
    (1.0, 0.0)

    Args:
      optimizer: any optax gradient transformation.
      patterns: of the names of parameters, with the wildcards of :mod:`fnmatch`. A name is the
        path in the tree joined by "/", without flax's "params": ``encoder/layer_0/phi_e/kernel``.

    Raises:
      ValueError: when the optimizer sees the parameters: a pattern matches none, or all are
        frozen.
    """
    patterns = (patterns,) if isinstance(patterns, str) else tuple(patterns)

    def labels(params: Any) -> Any:
        names = list(named(params))
        frozen = matching(names, patterns)
        if frozen.issuperset(names):
            raise ValueError(f"{patterns} freeze all {len(names)} parameters; expected fewer")
        return jax.tree_util.tree_map_with_path(
            lambda path, _: "frozen" if _name(path) in frozen else "trained", params
        )

    # p + (-0.0) is p, bit by bit, also where p is -0.0.
    nothing = optax.stateless(
        lambda updates, _: jax.tree.map(lambda u: jnp.full_like(u, -0.0), updates)
    )
    return optax.multi_transform({"trained": optimizer, "frozen": nothing}, labels)


def matching(names: Iterable[str], patterns: Sequence[str]) -> set[str]:
    """The names that match one of the patterns; "!encoder/*" all that do not match "encoder/*".

    Raises:
      ValueError: a pattern matches none.
    """
    names, found = list(names), set()
    for pattern in patterns:
        others = pattern.startswith("!")
        plain = pattern.removeprefix("!")
        matches = {name for name in names if fnmatchcase(name, plain) != others}
        if not matches:
            raise ValueError(f"{pattern!r} matches no parameter; expected one of {_listed(names)}")
        found |= matches
    return found


def _name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/").removeprefix("params/")


def _misfits(given: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    """All that is missing, left over or misshapen, in words."""
    problems = [
        f"{name} {_shape(array)} is missing"
        for name, array in expected.items()
        if name not in given
    ]
    problems += [
        f"{name} {_shape(array)} is left over"
        for name, array in given.items()
        if name not in expected
    ]
    problems += [
        f"{name} has shape {_shape(given[name])}, expected {_shape(array)}"
        for name, array in expected.items()
        if name in given and _shape(given[name]) != _shape(array)
    ]
    return problems


def _shape(array: Any) -> tuple[int, ...]:
    return tuple(np.shape(array))


def _cast(array: Any, like: Any) -> Any:
    return np.asarray(array).astype(like.dtype)


def _listed(words: Sequence[str]) -> str:
    text = "; ".join(words)
    return text if len(text) <= _MAX_LISTED else f"{text[:_MAX_LISTED]}… ({len(words)} in all)"
