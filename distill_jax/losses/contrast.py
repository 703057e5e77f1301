"""Contrast: each query finds its own among the contexts of its row.

Shape suffixes: B rows, G queries of a row, C contexts of a row, D width.
"""
import jax
import jax.numpy as jnp

Array = jax.Array


def in_batch(queries_BGD: Array, contexts_BCD: Array, own_G: Array, there_BC: Array) -> tuple[Array, Array]:
  """(-log softmax_c(q_g . c) at c = own_G[g], whether own is the largest), float32 [B, G].

  L_i = -log(exp s(x_i, e_i) / sum_e exp s(x_i, e)), s the inner product, as it is: no temperature, no length is divided out (Karpukhin 2020,
  arXiv 2004.04906, equation 2; Rubin 2022, arXiv 2112.08633). there: contexts that are False are left out of every softmax; values of
  queries that are absent themselves mean nothing and need weight 0.
  """
  scores = jnp.einsum('bgd,bcd->bgc', queries_BGD.astype(jnp.float32), contexts_BCD.astype(jnp.float32), precision='highest')
  scores = jnp.where(there_BC[:, None, :], scores, -1e30)
  own = jnp.take_along_axis(scores, own_G[None, :, None], axis=2)[..., 0]
  values = jax.nn.logsumexp(scores, axis=2) - own
  return values, jax.lax.stop_gradient((own >= jnp.max(scores, axis=2)).astype(jnp.float32))
