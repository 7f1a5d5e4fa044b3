"""Parameters by name: loading trained values, and freezing some of them.

The name of a parameter is its path in the tree, joined by "/", without flax's collection "params":
``encoder/layer_0/phi_e/kernel``. A pattern is a name with the wildcards of :mod:`fnmatch`: ``*``
matches any text including "/", ``?`` one character, and ``[01]`` one of these characters. A leading
``!`` negates the pattern.
"""

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from egnn_jax.training._validation import require_optimizer

_MAX_LENGTH = 2_000  # characters of a list in a message


def named(params: Any) -> dict[str, Any]:
    """The arrays of a tree of parameters, by name.

    Raises:
      ValueError: two arrays have the same name.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    result = {_name(path): leaf for path, leaf in leaves}
    if len(result) < len(leaves):
        raise ValueError("two parameters have one name; expected a name for each")
    return result


def from_names(arrays: Mapping[str, Any], like: Any) -> Any:
    """Build a tree with the structure and dtypes of ``like`` from arrays by name.

    Raises:
      ValueError: arrays are missing, left over or misshapen; the message lists all of them.
    """
    expected = named(like)
    if problems := _mismatches(arrays, expected):
        raise ValueError(_joined(problems))
    values = {name: _cast(array, expected[name]) for name, array in arrays.items()}
    return jax.tree_util.tree_map_with_path(lambda path, _: values[_name(path)], like)


def transfer(arrays: Mapping[str, Any], new: Any, skip: Sequence[str] = ()) -> Any:
    """Replace new parameters by trained ones of the same name and shape.

    Args:
      arrays: trained parameters by name, as returned by :func:`named`.
      new: new parameters, a tree of arrays.
      skip: patterns of parameters that stay new; matching names in ``arrays`` are ignored too.

    Returns:
      A tree with the structure and dtypes of ``new``.

    Raises:
      ValueError: parameters are missing, left over or misshapen (the message lists all of them),
        or a pattern matches none.
    """
    values = named(new)
    skipped = matching([*values, *(name for name in arrays if name not in values)], skip)
    trained = {name: array for name, array in arrays.items() if name not in skipped}
    expected = {name: array for name, array in values.items() if name not in skipped}
    if problems := _mismatches(trained, expected):
        raise ValueError(
            f"{_joined(problems)}; expected the parameters of the same network, patterns "
            "(init_skip) of those that are to stay new, or no init"
        )
    values |= {name: _cast(array, values[name]) for name, array in trained.items()}
    return jax.tree_util.tree_map_with_path(lambda path, _: values[_name(path)], new)


def freeze(
    optimizer: optax.GradientTransformation, patterns: str | Sequence[str]
) -> optax.GradientTransformation:
    """Wrap an optimizer so that it leaves some parameters exactly as they are.

    Frozen parameters have no updates, weight decay or optimizer state, and their gradients do not
    count toward a clipped norm. Running statistics of batch normalization still follow the data.

    >>> optimizer = egnn.freeze(optax.sgd(1.0), ["encoder/*"])
    >>> params = {"encoder": {"w": jnp.ones(1)}, "head": {"w": jnp.ones(1)}}
    >>> updates, _ = optimizer.update(params, optimizer.init(params), params)
    >>> after = optax.apply_updates(params, updates)
    >>> after["encoder"]["w"].item(), after["head"]["w"].item()
    (1.0, 0.0)

    Args:
      optimizer: any optax gradient transformation.
      patterns: patterns of parameter names, with the wildcards of :mod:`fnmatch`. A name is the
        path in the tree joined by "/", without flax's "params": ``encoder/layer_0/phi_e/kernel``.

    Raises:
      ValueError: an argument has the wrong type, a pattern matches no parameter, or all parameters
        are frozen; the last two are raised once the optimizer is given the parameters.
    """
    require_optimizer(optimizer)
    if not isinstance(patterns, str | Sequence):
        raise ValueError(f"patterns are {patterns!r}; expected a pattern, or a list of them")
    patterns = (patterns,) if isinstance(patterns, str) else tuple(patterns)

    def labels(params: Any) -> Any:
        names = list(named(params))
        frozen = matching(names, patterns)
        if frozen.issuperset(names):
            raise ValueError(f"{patterns} freeze all {len(names)} parameters; expected fewer")
        return jax.tree_util.tree_map_with_path(
            lambda path, _: "frozen" if _name(path) in frozen else "trained", params
        )

    # p + (-0.0) equals p bit for bit, even if p is -0.0.
    zero_updates = optax.stateless(
        lambda updates, _: jax.tree.map(lambda u: jnp.full_like(u, -0.0), updates)
    )
    return optax.multi_transform({"trained": optimizer, "frozen": zero_updates}, labels)


def matching(names: Iterable[str], patterns: Sequence[str]) -> set[str]:
    """The names that match any of the patterns; "!encoder/*" matches what "encoder/*" does not.

    Raises:
      ValueError: a pattern matches no name.
    """
    names, matched = list(names), set()
    for pattern in patterns:
        negated = pattern.startswith("!")
        glob = pattern.removeprefix("!")
        matches = {name for name in names if fnmatchcase(name, glob) != negated}
        if not matches:
            raise ValueError(f"{pattern!r} matches no parameter; expected one of {_joined(names)}")
        matched |= matches
    return matched


def _name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/").removeprefix("params/")


def _mismatches(arrays: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    """A description of each array that is missing, left over or misshapen."""
    problems = [
        f"{name} {_shape(array)} is missing"
        for name, array in expected.items()
        if name not in arrays
    ]
    problems += [
        f"{name} {_shape(array)} is left over"
        for name, array in sorted(arrays.items())
        if name not in expected
    ]
    problems += [
        f"{name} has shape {_shape(arrays[name])}, expected {_shape(array)}"
        for name, array in expected.items()
        if name in arrays and _shape(arrays[name]) != _shape(array)
    ]
    return problems


def _shape(array: Any) -> tuple[int, ...]:
    return tuple(np.shape(array))


def _cast(array: Any, like: Any) -> Any:
    return np.asarray(array).astype(like.dtype)


def _joined(items: Sequence[str]) -> str:
    """The items as one text, which is cut if it is long."""
    text = "; ".join(items)
    return text if len(text) <= _MAX_LENGTH else f"{text[:_MAX_LENGTH]}… ({len(items)} in all)"
