"""Choosing the next token from logits: greedy, temperature, top-k, top-p, all without a sort.

Shape suffixes: R rows, V vocabulary, N blocks of the vocabulary, W width of a block.
"""
import jax
import jax.numpy as jnp

Array = jax.Array
BLOCK = 128


def greedy(logits_RV: Array) -> Array:
  """int32 [R], the most likely token of each row; the lowest id among equals."""
  # max, then the first place that holds it: two plain reductions, where a CPU is slow at one over (value, index) pairs
  ids = jax.lax.broadcasted_iota(jnp.int32, logits_RV.shape, 1)
  best = logits_RV >= jnp.max(logits_RV, axis=-1, keepdims=True)
  return jnp.minimum(jnp.min(jnp.where(best, ids, logits_RV.shape[-1]), axis=-1), logits_RV.shape[-1] - 1)


def draw(uniform_R: Array, logits_RV: Array, *, temperature: float, top_p: float = 1.0, top_k: int = 0) -> Array:
  """int32 [R], one draw a row by inverting the cumulative distribution at `uniform_R` in [0, 1).

  The distribution is softmax(logits / temperature), cut to the top_k most likely tokens (0: all), then, renormalised, to the smallest
  set of most likely tokens that holds at least top_p of the mass (Holtzman 2019, arXiv:1904.09751). Tokens exactly as likely as the
  last one kept are kept too. Never draws a token that was cut or has logit -inf.
  """
  top = jnp.max(logits_RV, axis=-1, keepdims=True)
  p_RV = jnp.exp((logits_RV - top) / temperature)
  if 0 < top_k < logits_RV.shape[-1]:
    p_RV = _keep_top(p_RV, jnp.ones_like(p_RV), jnp.full((p_RV.shape[0], 1), float(top_k)))
  if top_p < 1.0:
    p_RV = _keep_top(p_RV, p_RV, top_p * jnp.sum(p_RV, axis=-1, keepdims=True))
  return _invert(uniform_R, p_RV)


def log_prob(logits_RV: Array, tokens_R: Array) -> Array:
  """float32 [R], log softmax(logits) at `tokens_R`."""
  chosen = jnp.take_along_axis(logits_RV, tokens_R[:, None], axis=-1)[:, 0]
  return chosen - jax.nn.logsumexp(logits_RV, axis=-1)


def _keep_top(p_RV: Array, weight_RV: Array, limit_R1: Array) -> Array:
  """`p` with zeros at every entry to which more likely entries already give a summed weight of at least `limit`.

  The threshold is found by bisection over the bits of a float32, which order non-negative floats as integers: 31 sums, exact, no sort.
  """
  def halve(_, bounds):
    low, high = bounds                  # the threshold lies in (low, high], as bits
    middle = jnp.maximum(low + (high - low) // 2, 0)
    above = jnp.sum(jnp.where(p_RV > jax.lax.bitcast_convert_type(middle, jnp.float32), weight_RV, 0.0), axis=-1, keepdims=True)
    enough = above < limit_R1
    return jnp.where(enough, low, middle), jnp.where(enough, middle, high)

  low = jnp.full(limit_R1.shape, -1, jnp.int32)
  high = jax.lax.bitcast_convert_type(jnp.max(p_RV, axis=-1, keepdims=True), jnp.int32)
  bits = jax.lax.fori_loop(0, 31, halve, (low, high))[1]
  return jnp.where(p_RV >= jax.lax.bitcast_convert_type(bits, jnp.float32), p_RV, 0.0)


def _invert(uniform_R: Array, p_RV: Array) -> Array:
  """The first id whose cumulative p exceeds uniform x total: first the block, then the place in it."""
  rows, size = p_RV.shape
  blocks = -(-size // BLOCK)
  p_RNW = jnp.pad(p_RV, ((0, 0), (0, blocks * BLOCK - size))).reshape(rows, blocks, BLOCK)
  mass_RN = jnp.sum(p_RNW, axis=-1)
  total_R = jnp.sum(mass_RN, axis=-1)
  block_R, left_R = _place(uniform_R * total_R, mass_RN)
  inside_RW = jnp.take_along_axis(p_RNW, block_R[:, None, None], axis=1)[:, 0]
  place_R, _ = _place(left_R, inside_RW)
  return block_R * BLOCK + place_R


def _place(target_R: Array, p_RN: Array) -> tuple[Array, Array]:
  """(first n with p > 0 whose cumulative sum exceeds `target`, or the last n with p > 0; what is left of the target before n)."""
  sums = jnp.cumsum(p_RN, axis=-1)
  there = p_RN > 0
  past = there & (sums > target_R[:, None])
  last = p_RN.shape[-1] - 1 - jnp.argmax(there[:, ::-1], axis=-1)
  place = jnp.where(jnp.any(past, axis=-1), jnp.argmax(past, axis=-1), last).astype(jnp.int32)
  before = jnp.take_along_axis(sums - p_RN, place[:, None], axis=-1)[:, 0]
  return place, jnp.maximum(target_R - before, 0.0)
