"""Divergences between the next-token distributions of a student and a teacher: [..., V] -> [...], never reduced.

Legend: T teacher, S student, M mixture; t, s, m their probabilities, lt, ls, lm their logarithms; V vocabulary, K kept entries.

What holds for every function of this file:
* Values and mathematics are float32 whatever the dtype of the logits. Both distributions are softmax(logits / temperature) and the
  value is multiplied by temperature ** 2, so that the size of the gradient hardly depends on it (Hinton 2015, arXiv:1503.02531).
* A logit of -inf is probability exactly 0: such a term counts 0 log 0 = 0 and gets no gradient, on either side or both. Where KL is
  truly infinite (mass on an id that the other side forbids) the value is +inf; the gradient stays finite: it is that of the terms both
  sides can reach. NaN logits give NaN: they are not hidden here (`losses.tokens.per_token` cleans what stands under weight 0).
* A row that is -inf everywhere has no distribution and counts 0.
* Sums have the form  sum p (log p - log q) - p + q,  which equals KL for normalised p and q and is >= 0 term by term; where p and q are
  equal its value is 0 and its gradient cancels within each entry, to one rounding of p.
* Gradients flow to both arguments (of top_k_kl to the student's); whoever wants a frozen teacher stops its gradient. Those of the plain
  KLs are written out: they need the logits only, nothing of size V is kept between the sweeps.
"""
import jax
import jax.numpy as jnp

from distill_jax.losses.distribution import FLOOR, empty, log_sum, scaled

Array = jax.Array
ROUNDING = 1e-6    # less rest mass than this cannot be told from the rounding of a float32 sum


def forward_kl(student_logits: Array, teacher_logits: Array, *, temperature: float = 1.0) -> Array:
  """KL(T || S) = sum t (log t - log s), times temperature ** 2. Hinton 2015 (arXiv:1503.02531), up to the teacher's entropy.

  student_logits, teacher_logits: [..., V] -> float32 [...], in nats. Makes the student cover all the teacher does.
  +inf where the teacher has mass on an id with student logit -inf.
  """
  return _kl_of_logits(scaled(teacher_logits, temperature), scaled(student_logits, temperature)) * temperature ** 2


def reverse_kl(student_logits: Array, teacher_logits: Array, *, temperature: float = 1.0) -> Array:
  """KL(S || T) = sum s (log s - log t), times temperature ** 2. Gu 2023, MiniLLM (arXiv:2306.08543), per token.

  student_logits, teacher_logits: [..., V] -> float32 [...], in nats. Makes the student avoid what the teacher avoids; it may drop modes.
  +inf where the student has mass on an id with teacher logit -inf.
  """
  return _kl_of_logits(scaled(student_logits, temperature), scaled(teacher_logits, temperature)) * temperature ** 2


def jsd(student_logits: Array, teacher_logits: Array, *, beta: float, temperature: float = 1.0) -> Array:
  """Generalised Jensen-Shannon: beta KL(T || M) + (1 - beta) KL(S || M), M = beta T + (1 - beta) S, times temperature ** 2.

  Agarwal 2023, GKD (arXiv:2306.13649), equation 1 with P = T and Q = S. [..., V], [..., V] -> float32 [...], nats; 0 < beta < 1;
  bounded by the entropy of (beta, 1 - beta). beta = 0.5 is the symmetric one, whose gradient is the same with the roles swapped.
  Hazard: towards both ends the value AND the gradient vanish (jsd / beta -> forward_kl as beta -> 0, jsd / (1 - beta) -> reverse_kl as
  beta -> 1), so the ends are refused. Libraries that switch to a KL at the ends jump there in scale; use the KLs by name.
  """
  _inside('jsd: beta', beta, 'use forward_kl or reverse_kl by name at the ends')
  ls, lt = _log_probs(student_logits, temperature), _log_probs(teacher_logits, temperature)
  lm = _log_mixture(lt, ls, beta)
  return _scale_back(_kl(lt, lm) * beta + _kl(ls, lm) * (1 - beta), ls, lt, temperature)


def skew_kl(student_logits: Array, teacher_logits: Array, *, skew: float, temperature: float = 1.0) -> Array:
  """KL(T || skew T + (1 - skew) S), times temperature ** 2. Ko 2024, DistiLLM (arXiv:2402.03898), the paper uses skew 0.1.

  [..., V], [..., V] -> float32 [...], nats; 0 < skew < 1; at most -log(skew), so never infinite. The paper's skew reverse KL is this
  function with its two arguments swapped. Hazard: the value shrinks with skew; compare curves at one skew only.
  """
  _inside('skew_kl: skew', skew, 'skew 0 is forward_kl')
  ls, lt = _log_probs(student_logits, temperature), _log_probs(teacher_logits, temperature)
  return _scale_back(_kl(lt, _log_mixture(lt, ls, skew)), ls, lt, temperature)


def top_k_kl(student_logits: Array, teacher_ids: Array, teacher_logps: Array, *, temperature: float = 1.0) -> Array:
  """KL(T || S) over K + 1 classes: the teacher's K kept ids and one rest class with all other mass, times temperature ** 2.

  student_logits [..., V]; teacher_ids int [..., K], distinct, -1 (or anything outside the vocabulary) for an absent entry, whose mass
  then belongs to the rest; teacher_logps [..., K]: log-probabilities of the FULL softmax at `temperature`, not renormalised
  -> float32 [...], nats. By the data-processing inequality it never exceeds forward_kl and equals it when all V ids are kept.
  Hazard: renormalising both sides over the K ids, as is often done, gives loss 0 to a student with 99 % of its mass elsewhere.
  No gradient flows to teacher_logps: they are data.
  The student's rest mass is summed over the other logits, not taken as 1 - sum, which has no digits left when it is small.
  """
  return _top_k_kl(scaled(student_logits, temperature), teacher_ids, teacher_logps) * temperature ** 2


def _inside(name: str, value, remedy: str) -> None:
  if isinstance(value, (int, float)) and not 0 < value < 1:
    raise ValueError(f'{name} must lie strictly between 0 and 1, got {value}; {remedy}')


@jax.custom_vjp
def _kl_of_logits(z_p: Array, z_q: Array) -> Array:
  """KL(P || Q) of scaled logits, see the head of this file; 0 where a side has no distribution."""
  total_p, total_q = log_sum(z_p), log_sum(z_q)
  lp, lq = z_p - total_p, z_q - total_q
  p = jnp.exp(lp)
  terms = jnp.where((z_q == FLOOR) & (p > 0), jnp.inf, p * (lp - lq))
  value = jnp.sum(terms - p + jnp.exp(lq), axis=-1)
  return jnp.where(jnp.squeeze(empty(total_p) | empty(total_q), -1), 0.0, value)


def _kl_forward(z_p, z_q):
  return _kl_of_logits(z_p, z_q), (z_p, z_q)


def _kl_backward(kept, given):
  """d/dz_q = q (1 - lost) - p_b and d/dz_p = u - p sum(u), u = p (log p - log q) on b, -p elsewhere.

  b: the ids that Q can reach; lost: P's mass on the others.
  """
  z_p, z_q = kept
  total_p, total_q = log_sum(z_p), log_sum(z_q)
  lp, lq = z_p - total_p, z_q - total_q
  p, q, dead = jnp.exp(lp), jnp.exp(lq), z_q == FLOOR
  given = jnp.where(empty(total_p) | empty(total_q), 0.0, given[..., None])
  u = jnp.where(dead, -p, p * (lp - lq))
  to_p = u - p * jnp.sum(u, axis=-1, keepdims=True)
  to_q = q * (1 - jnp.sum(jnp.where(dead, p, 0.0), axis=-1, keepdims=True)) - jnp.where(dead, 0.0, p)
  return given * to_p, given * to_q


_kl_of_logits.defvjp(_kl_forward, _kl_backward)


def _kept(size: int, ids: Array, logps: Array) -> tuple[Array, Array, Array, Array]:
  """(present [..., K], log t [..., K], log of the rest [..., 1], both FLOOR where nothing is, rest [..., 1]) of top-k targets."""
  present = (ids >= 0) & (ids < size) & (logps > FLOOR)
  lt = jnp.where(present, jnp.where(present, logps.astype(jnp.float32), 0.0), FLOOR)
  mass = jnp.sum(jnp.exp(lt), axis=-1, keepdims=True)
  rest = jnp.where(mass < 1 - ROUNDING, 1 - mass, 0.0)
  return present, lt, jnp.where(rest > 0, jnp.log(jnp.where(rest > 0, rest, 1.0)), FLOOR), rest


def _spread(size: int, ids: Array, present: Array, lt: Array) -> Array:
  """The kept probabilities at their ids, [..., V]; -1 at ids that are not kept."""
  put = lambda row, ids, values: row.at[ids].set(values, mode='drop')
  for _ in range(ids.ndim - 1):      # row by row, not over flat rows: the compiler then sees that rows stay where they lie
    put = jax.vmap(put)
  return put(jnp.full(ids.shape[:-1] + (size,), -1.0), jnp.where(present, ids, size), jnp.exp(lt))


@jax.custom_vjp
def _top_k_kl(z: Array, ids: Array, logps: Array) -> Array:
  """The value of `top_k_kl` of scaled logits, before its temperature ** 2."""
  return _top_k_forward(z, ids, logps)[0]


def _top_k_forward(z, ids, logps):
  size = z.shape[-1]
  present, lt, lt_rest, _ = _kept(size, ids, logps)
  total = log_sum(z)
  others = log_sum(jnp.where(_spread(size, ids, present, lt) < 0, z, FLOOR))
  chosen = jnp.take_along_axis(z, jnp.where(present, ids, 0), axis=-1)
  ls = jnp.where(present & (chosen != FLOOR), chosen - total, FLOOR)
  ls_rest = jnp.where(empty(others), FLOOR, others - total)
  value = _kl(jnp.concatenate([lt, lt_rest], axis=-1), jnp.concatenate([ls, ls_rest], axis=-1))
  return jnp.where(empty(jnp.squeeze(total, -1)), 0.0, value), (z, ids, logps)


def _top_k_backward(kept, given):
  """d/dz = s P_b - t at kept ids, s P_b - t_rest w elsewhere.

  w: the share of an id in the student's rest mass; P_b: the teacher's mass in classes that the student can reach.
  """
  z, ids, logps = kept
  size = z.shape[-1]
  present, lt, _, rest = _kept(size, ids, logps)
  t = _spread(size, ids, present, lt)
  total = log_sum(z)
  dead, tail = z == FLOOR, t < 0
  others = log_sum(jnp.where(tail, z, FLOOR))
  rest = jnp.where(empty(others), 0.0, rest)
  reached = jnp.sum(jnp.where(dead | tail, 0.0, t), axis=-1, keepdims=True) + rest
  target = jnp.where(tail, rest * jnp.exp(jnp.minimum(z - others, 0.0)), t)
  given = jnp.where(empty(total), 0.0, given[..., None])
  return given * jnp.where(dead, 0.0, jnp.exp(z - total) * reached - target), None, None


_top_k_kl.defvjp(_top_k_forward, _top_k_backward)


def _log_probs(logits: Array, temperature) -> Array:
  """log softmax(logits / temperature), FLOOR where the probability is exactly 0."""
  z = scaled(logits, temperature)
  return jnp.where(z == FLOOR, FLOOR, z - log_sum(z))


def _kl(lp: Array, lq: Array) -> Array:
  """sum p (log p - log q) - p + q over the last axis; +inf (a constant, without gradient) where p has mass on what q forbids."""
  p, q = jnp.exp(lp), jnp.exp(lq)
  both = (lp != FLOOR) & (lq != FLOOR)
  terms = jnp.where(both, p * jnp.where(both, lp - lq, 0.0), jnp.where((p > 0) & (lq == FLOOR), jnp.inf, 0.0))
  return jnp.sum(terms - p + q, axis=-1)


def _scale_back(value: Array, ls: Array, lt: Array, temperature) -> Array:
  """`value` times temperature ** 2, 0 where a side has no distribution."""
  nothing = (jnp.max(ls, axis=-1) == FLOOR) | (jnp.max(lt, axis=-1) == FLOOR)
  return jnp.where(nothing, 0.0, value) * temperature ** 2


def _log_mixture(la: Array, lb: Array, weight_a) -> Array:
  """log(weight_a exp(la) + (1 - weight_a) exp(lb)), 0 < weight_a < 1; exactly la where la == lb."""
  a_low = la <= lb
  high, low = jnp.where(a_low, lb, la), jnp.where(a_low, la, lb)
  weight_low = jnp.where(a_low, weight_a, 1 - weight_a)
  none = high == FLOOR
  gap = jnp.where(low == FLOOR, -200.0, jnp.where(none, 0.0, low - high))
  return jnp.where(none, FLOOR, high + jnp.log1p(weight_low * jnp.expm1(gap)))
