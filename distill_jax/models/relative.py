"""A learned bias of attention scores by relative position, in buckets that widen with distance (T5: Raffel 2020, arXiv:1910.10683)."""
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array


def bias(table_NH: Array, back: Array, *, furthest: int, both: bool) -> Array:
  """float32 [..., H, T, S] from the table of N buckets and how far back each slot lies: back int32 [..., T, S], query minus slot.

  both: half of the buckets are for slots ahead; otherwise those fall into the first bucket with the query's own slot.
  """
  buckets = table_NH.shape[0] // 2 if both else table_NH.shape[0]
  distance = jnp.minimum(jnp.abs(back) if both else jnp.maximum(back, 0), furthest)
  bucket = jnp.take(jnp.asarray(_of_distance(buckets, furthest)), distance, mode='clip')
  if both:
    bucket = bucket + jnp.where(back < 0, buckets, 0)
  return jnp.moveaxis(jnp.take(table_NH.astype(jnp.float32), bucket, axis=0, mode='clip'), -1, -3)


@functools.lru_cache(maxsize=None)
def _of_distance(buckets: int, furthest: int) -> np.ndarray:
  """int32 [furthest + 1]: one bucket a distance in the first half, then logarithmically wider ones, the last from `furthest` on."""
  exact = buckets // 2
  distance = np.arange(furthest + 1)
  far = np.log(np.maximum(distance, 1).astype(np.float32) / np.float32(exact)) / np.float32(math.log(furthest / exact))
  wide = exact + (far * np.float32(buckets - exact)).astype(np.int32)
  return np.where(distance < exact, distance, np.minimum(wide, buckets - 1)).astype(np.int32)
