"""Arguments of all kinds for the fuzz tests, and what counts as a right answer to them."""

import traceback
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import egnn_jax as egnn

PACKAGE = str(Path(egnn.__file__).parent)
DTYPES = (
    "bool", "int8", "int32", "int64", "uint8", "uint64", "float16", "float32", "float64",
    "longdouble", "complex64", "complex128", "object", "str", "datetime64[s]", "timedelta64[s]",
)  # fmt: skip
NUMBERS = (0.0, -0.0, np.nan, np.inf, -np.inf, 1e20, -1e20, 1e38, 1e39, 1e300, 1e-45, 2.0**31, -1)
OTHERS = (
    None, True, 0, -1, 3, 2**70, 0.5, 1e20, float("nan"), 1j, "0", b"", (), {}, {"x": 1}, object,
    [[1.0], [1.0, 2.0]], [None], range(3), np.float64(1), np.zeros(()), np.zeros((2, 0)), slice(2),
)  # fmt: skip


def odd(rng: np.random.Generator, value: Any) -> Any:
    """Something that a user could pass instead of ``value``, an array or a number."""
    kind = rng.integers(10)
    if kind == 0 or not isinstance(value, np.ndarray):
        return OTHERS[rng.integers(len(OTHERS))]
    if kind == 1:
        with np.errstate(all="ignore"):
            return value.astype(DTYPES[rng.integers(len(DTYPES))])
    if kind == 2 and value.size and value.dtype.kind in "fiu":
        with np.errstate(all="ignore"):
            changed = value.astype(np.float64) if rng.integers(2) else value.copy()
            number = NUMBERS[rng.integers(len(NUMBERS))]
            if changed.dtype.kind == "f" or (np.isfinite(number) and abs(number) < 100):
                changed.flat[rng.integers(value.size)] = number
        return changed
    if kind == 3:
        return np.ma.masked_array(value, mask=rng.random(value.shape) < 0.2)
    if kind == 4:
        return value[:: rng.choice([-1, 2])] if value.ndim else value
    if kind == 5:
        return np.concatenate([value, value[:1]]) if value.ndim and len(value) else value[None]
    if kind == 6:
        return [value[..., None], value.T, value.ravel(), value[None]][rng.integers(4)]
    if kind == 7 and value.ndim:
        return np.zeros([0 if rng.integers(2) else n for n in value.shape], value.dtype)
    if kind == 8:
        return value.tolist()
    if kind == 9 and value.dtype.kind in "f":
        return jnp.asarray(value * 10.0 ** rng.integers(-30, 30), rng.choice(["bfloat16", "f4"]))
    return np.asfortranarray(value)


def mostly_right(rng: np.random.Generator, right: dict[str, Any]) -> dict[str, Any]:
    """The arguments, with none, one or two of them odd."""
    given = dict(right)
    for name in rng.choice(list(right), size=min(len(right), rng.integers(3)), replace=False):
        given[name] = odd(rng, right[name])
    return given


def call(rng: np.random.Generator, function: Any, given: dict[str, Any]) -> Any:
    """The function of the arguments, one time in five with one of the arrays traced."""
    # Of traced values it is not checked whether they are finite.
    with np.errstate(all="ignore"):
        arrays = [
            name
            for name, value in given.items()
            if type(value) is np.ndarray
            and value.dtype.kind in "fiubc"
            and value.dtype.itemsize <= 8
            and (np.abs(value.astype(complex)) < 1e30).all()
        ]
    if arrays and not rng.integers(5):
        name = arrays[rng.integers(len(arrays))]
        others = {k: v for k, v in given.items() if k != name}
        return jax.jit(lambda value: function(**others, **{name: value}))(given[name])
    return function(**given)


def refused(error: Exception) -> str:
    """What is wrong with an exception: nothing where it is ours and says what it expected."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = frames[-1].filename.startswith(PACKAGE)
    if isinstance(error, ValueError | TypeError) and ours and "expected" in str(error):
        return "" if len(str(error)) < 2_000 else f"{len(str(error))} characters"
    return "".join(traceback.format_exception(error)[-3:])


def graph(rng: np.random.Generator, **fields: bool) -> Any:
    """A random graph of up to five nodes on the host, with fields asked for or at random."""
    size = int(rng.integers(0, 6))
    has = lambda name: fields.get(name, bool(rng.integers(2)))
    senders, receivers = np.nonzero(rng.random((size, size)) < 0.5)
    return egnn.graph_from_edges(
        senders, receivers, x=rng.standard_normal((size, 3)),
        h=rng.integers(1, 9, size) if has("kinds") else rng.standard_normal((size, 2)),
        v=rng.standard_normal((size, 3)) if has("v") else None,
        a=rng.standard_normal((len(senders), 2)) if has("a") else None,
        y=rng.standard_normal(2) if has("y") else None,
    )  # fmt: skip


def odd_graph(rng: np.random.Generator, right: Any) -> Any:
    """A graph of which something is odd: a field, the type, the padding, or nothing."""
    kind = rng.integers(8)
    if kind == 0:
        return OTHERS[rng.integers(len(OTHERS))]
    if kind == 1:
        return right._replace(nodes=np.asarray(right.nodes.x))
    if kind == 2:
        name = ("edges", "globals", "receivers", "senders", "n_node", "n_edge")[rng.integers(6)]
        value = getattr(right, name)
        value = np.asarray(value) if isinstance(value, jax.Array) else value
        return right._replace(**{name: odd(rng, value)})
    if kind == 3:
        part = ("nodes", "edges", "globals")[rng.integers(3)]
        tree = getattr(right, part)
        names = [name for name in vars(tree) if vars(tree)[name] is not None]
        if names:
            name = names[rng.integers(len(names))]
            changed = odd(rng, np.asarray(vars(tree)[name]))
            return right._replace(**{part: tree.replace(**{name: changed})})
    if kind == 4:
        sizes = right.nodes.x.shape[0], right.senders.shape[0]
        return egnn.batch([right], egnn.Budget(sizes[0] + 2, sizes[1] + 3, 4))
    return right
