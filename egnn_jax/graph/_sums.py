"""Sums of many values, in a type that holds them."""

import jax
import jax.numpy as jnp


def dtype_of_sums(values: jax.Array) -> jnp.dtype:
    """The dtype that many values are summed in: their own, or that of 32 bits where it is wider."""
    given = jnp.dtype(values.dtype)
    kinds = {"f": jnp.float32, "V": jnp.float32, "i": jnp.int32, "u": jnp.uint32}
    return jnp.dtype(kinds.get(given.kind, given) if given.itemsize < 4 else given)


def segment_sum(values: jax.Array, segments: jax.Array, number: int) -> jax.Array:
    """Σ of the values (M, …) of each segment, (number, …), in at least 32 bits.

    Integers stay in these, other numbers are returned in their own type.
    """
    values = jnp.asarray(values)
    wide = values.astype(dtype_of_sums(values))
    total = jax.ops.segment_sum(wide, segments, number, indices_are_sorted=True)
    return total if jnp.issubdtype(values.dtype, jnp.integer) else total.astype(values.dtype)
