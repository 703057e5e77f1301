"""Draws: a sparse, unbiased estimate of a teacher's whole distribution.

Keeping the top k and forgetting the rest biases what the student learns; counts of random draws do not (Anshumann et al. 2025, Sparse logit
sampling, arXiv:2503.16870). With N draws a token and c_v of them at v, q_v = c_v / N has E[q_v] = p_v, so E[sum_v q_v f(v)] =
sum_v p_v f(v) for every f that does not depend on the draws. The draws are one from each of N slices of equal mass (stratified): their variance is never
above that of independent draws (Cochran 1977, section 5.6), and it is 0 where all mass lies on one token.

What a loss does with them: (ids, log q) are labels like any other. q sums to 1, so `losses.divergence.top_k_kl` has no rest class and is
CE(q, student) - H(q): H(q) does not depend on the student, and the gradient, softmax(logits) - q, is that of the cross-entropy to the whole
distribution in the mean. The value is not the KL to p: it lacks E[H(q)] - H(p) <= 0.
Thinning a top k with a rest class would be biased (what was not drawn falls to the rest on the student's side only), so the labels must
hold the whole distribution.

Shape suffixes: ... any leading axes, V entries of the distribution, N draws.
"""
import jax
import jax.numpy as jnp

Array = jax.Array


def draw(key_B: Array, ids_BLV: Array, logps_BLV: Array, *, draws: int) -> tuple[Array, Array, Array]:
  """(ids int32 [B, L, N], log(count / N) float32 [B, L, N], mass float32 [B, L]): each id drawn stands once, then -1 with 0.

  key_B: one key a row, so that the draws go with the example; ids, logps: the distribution in any order, absent entries with id -1.
  mass: what the entries hold together (1 where there are none): the estimate is of p / mass.
  ValueError for draws < 1.
  """
  if draws < 1:
    raise ValueError(f'draws={draws} must be at least 1')
  places_L = jnp.arange(ids_BLV.shape[1])
  keys_BL = jax.vmap(lambda key: jax.vmap(lambda place: jax.random.fold_in(key, place))(places_L))(key_B)
  return jax.vmap(jax.vmap(lambda *token: _draw(*token, draws)))(keys_BL, ids_BLV, logps_BLV)


def _draw(key, ids_V, logps_V, draws):
  """`draw` of one token."""
  p = jnp.where(ids_V >= 0, jnp.exp(logps_V), 0.0)
  upto = jnp.cumsum(p)
  points = (jnp.arange(draws) + jax.random.uniform(key, (draws,))) / draws * upto[-1]
  # the last entry with mass, where rounding puts a point at the very end
  drawn = jnp.minimum(jnp.searchsorted(upto, points, side='right'), jnp.max(jnp.where(p > 0, jnp.arange(len(p)), 0)))
  counts = jnp.searchsorted(drawn, drawn, side='right') - jnp.searchsorted(drawn, drawn, side='left')
  first = jnp.concatenate([jnp.ones(1, bool), drawn[1:] != drawn[:-1]])
  logs = jnp.where(first, jnp.log(counts / draws), 0.0).astype(jnp.float32)
  mass = jnp.where(jnp.any(ids_V >= 0), upto[-1], 1.0)
  return jnp.where(first, ids_V[drawn], -1).astype(jnp.int32), logs, mass
