"""Sums with an accumulator of at least 32 bits."""

import jax
import jax.numpy as jnp


def dtype_of_sums(values: jax.Array) -> jnp.dtype:
    """The accumulator dtype of a sum: that of the values, widened to at least 32 bits."""
    dtype = jnp.dtype(values.dtype)
    if dtype.itemsize >= 4:
        return dtype
    accumulators = {"f": jnp.float32, "V": jnp.float32, "i": jnp.int32, "u": jnp.uint32}
    return jnp.dtype(accumulators.get(dtype.kind, dtype))


def segment_sum(values: jax.Array, segments: jax.Array, num_segments: int) -> jax.Array:
    """Sum values (M, …) over each segment to (num_segments, …), in at least 32 bits.

    Integer sums keep the wider dtype; other sums are cast back to the dtype of the values.
    """
    values = jnp.asarray(values)
    wide = values.astype(dtype_of_sums(values))
    total = jax.ops.segment_sum(wide, segments, num_segments, indices_are_sorted=True)
    return total if jnp.issubdtype(values.dtype, jnp.integer) else total.astype(values.dtype)


def to_average(values: jax.Array) -> tuple[jax.Array, jnp.dtype]:
    """Return values in at least 32 bits, and the dtype of their mean: that of the values, or the
    default float type for integers.

    Callers cast the mean, not the sum, to it: the sum may exceed the range of half precision.
    """
    values = jnp.asarray(values)
    is_integer = jnp.issubdtype(values.dtype, jnp.integer)
    values = values.astype(jnp.result_type(float) if is_integer else values.dtype)
    return values.astype(dtype_of_sums(values)), values.dtype
