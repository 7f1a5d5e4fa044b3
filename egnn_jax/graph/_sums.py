"""Sums with an accumulator of at least 32 bits."""

import jax
import jax.numpy as jnp


def dtype_of_sums(values: jax.Array) -> jnp.dtype:
    """The accumulator dtype of a sum: that of the values, widened to at least 32 bits."""
    given = jnp.dtype(values.dtype)
    kinds = {"f": jnp.float32, "V": jnp.float32, "i": jnp.int32, "u": jnp.uint32}
    return jnp.dtype(kinds.get(given.kind, given) if given.itemsize < 4 else given)


def segment_sum(values: jax.Array, segments: jax.Array, number: int) -> jax.Array:
    """Sum values (M, …) over each segment to (number, …), in at least 32 bits.

    Integer sums keep the wider dtype; other sums are cast back to the dtype of the values.
    """
    values = jnp.asarray(values)
    wide = values.astype(dtype_of_sums(values))
    total = jax.ops.segment_sum(wide, segments, number, indices_are_sorted=True)
    return total if jnp.issubdtype(values.dtype, jnp.integer) else total.astype(values.dtype)


def to_average(values: jax.Array) -> tuple[jax.Array, jnp.dtype]:
    """Return values in at least 32 bits, and the dtype of their mean: theirs, or the default float
    type for integers.

    The mean is rounded to it last, since the sum may exceed the range of half precision.
    """
    values = jnp.asarray(values)
    whole = jnp.issubdtype(values.dtype, jnp.integer)
    values = values.astype(jnp.result_type(float) if whole else values.dtype)
    return values.astype(dtype_of_sums(values)), values.dtype
