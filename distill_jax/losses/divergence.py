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
* Gradients flow to both arguments; whoever wants a frozen teacher stops its gradient.
"""
import jax
import jax.numpy as jnp

Array = jax.Array
FLOOR = -1e30      # stands for log 0 where -inf would make NaN gradients
ROUNDING = 1e-6    # less rest mass than this cannot be told from the rounding of a float32 sum


def forward_kl(student_logits: Array, teacher_logits: Array, *, temperature: float = 1.0) -> Array:
  """KL(T || S) = sum t (log t - log s), times temperature ** 2. Hinton 2015 (arXiv:1503.02531), up to the teacher's entropy.

  student_logits, teacher_logits: [..., V] -> float32 [...], in nats. Makes the student cover all the teacher does.
  +inf where the teacher has mass on an id with student logit -inf.
  """
  ls, lt = _log_probs(student_logits, temperature), _log_probs(teacher_logits, temperature)
  return _scale_back(_kl(lt, ls), ls, lt, temperature)


def reverse_kl(student_logits: Array, teacher_logits: Array, *, temperature: float = 1.0) -> Array:
  """KL(S || T) = sum s (log s - log t), times temperature ** 2. Gu 2023, MiniLLM (arXiv:2306.08543), per token.

  student_logits, teacher_logits: [..., V] -> float32 [...], in nats. Makes the student avoid what the teacher avoids; it may drop modes.
  +inf where the student has mass on an id with teacher logit -inf.
  """
  ls, lt = _log_probs(student_logits, temperature), _log_probs(teacher_logits, temperature)
  return _scale_back(_kl(ls, lt), ls, lt, temperature)


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
  The student's rest mass is summed over the other logits, not taken as 1 - sum, which has no digits left when it is small.
  """
  logits = _scaled(student_logits, temperature)
  size = logits.shape[-1]
  present = (teacher_ids >= 0) & (teacher_ids < size) & (teacher_logps > FLOOR)
  lt = jnp.where(present, jnp.where(present, teacher_logps.astype(jnp.float32), 0.0), FLOOR)
  mass = jnp.sum(jnp.exp(lt), axis=-1, keepdims=True)
  rest = jnp.where(mass < 1 - ROUNDING, 1 - mass, 0.0)
  lt_rest = jnp.where(rest > 0, jnp.log(jnp.where(rest > 0, rest, 1.0)), FLOOR)

  total = _log_sum(logits)
  chosen = jnp.take_along_axis(logits, jnp.where(present, teacher_ids, 0), axis=-1)
  ls = jnp.where(present & (chosen != FLOOR), chosen - total, FLOOR)
  others = _log_sum(_drop_ids(logits, jnp.where(present, teacher_ids, size)))
  ls_rest = jnp.where(others != FLOOR, others - total, FLOOR)
  lt, ls = jnp.concatenate([lt, lt_rest], axis=-1), jnp.concatenate([ls, ls_rest], axis=-1)
  return _scale_back(_kl(lt, ls), ls, lt, temperature)


def _inside(name: str, value, remedy: str) -> None:
  if isinstance(value, (int, float)) and not 0 < value < 1:
    raise ValueError(f'{name} must lie strictly between 0 and 1, got {value}; {remedy}')


def _scaled(logits: Array, temperature) -> Array:
  """float32 logits / temperature, with FLOOR in place of -inf."""
  if isinstance(temperature, (int, float)) and not temperature > 0:
    raise ValueError(f'temperature must be above 0, got {temperature}')
  logits = logits.astype(jnp.float32)
  dead = logits / temperature <= FLOOR
  return jnp.where(dead, FLOOR, jnp.where(dead, 0.0, logits) / temperature)


def _log_sum(logits: Array) -> Array:
  """log sum exp over the last axis, kept as 1; FLOOR entries count nothing; FLOOR where there is nothing else."""
  dead = logits == FLOOR
  top = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
  top = jnp.where(top == FLOOR, 0.0, top)
  total = jnp.sum(jnp.where(dead, 0.0, jnp.exp(jnp.where(dead, 0.0, logits - top))), axis=-1, keepdims=True)
  return jnp.where(total == 0, FLOOR, jnp.log(jnp.where(total == 0, 1.0, total)) + top)


def _log_probs(logits: Array, temperature) -> Array:
  """log softmax(logits / temperature), FLOOR where the probability is exactly 0."""
  logits = _scaled(logits, temperature)
  return jnp.where(logits == FLOOR, FLOOR, logits - _log_sum(logits))


def _kl(lp: Array, lq: Array) -> Array:
  """sum p (log p - log q) - p + q over the last axis; +inf (a constant, without gradient) where p has mass on what q forbids."""
  p, q = jnp.exp(lp), jnp.exp(lq)
  both = (lp != FLOOR) & (lq != FLOOR)
  terms = jnp.where(both, p * jnp.where(both, lp - lq, 0.0), jnp.where((p > 0) & (lq == FLOOR), jnp.inf, 0.0))
  return jnp.sum(terms - p + q, axis=-1)


def _scale_back(value: Array, ls: Array, lt: Array, temperature) -> Array:
  """`value` times temperature ** 2, 0 where a side has no distribution."""
  empty = (jnp.max(ls, axis=-1) == FLOOR) | (jnp.max(lt, axis=-1) == FLOOR)
  return jnp.where(empty, 0.0, value) * temperature ** 2


def _log_mixture(la: Array, lb: Array, weight_a) -> Array:
  """log(weight_a exp(la) + (1 - weight_a) exp(lb)), 0 < weight_a < 1; exactly la where la == lb."""
  a_low = la <= lb
  high, low = jnp.where(a_low, lb, la), jnp.where(a_low, la, lb)
  weight_low = jnp.where(a_low, weight_a, 1 - weight_a)
  none = high == FLOOR
  gap = jnp.where(low == FLOOR, -200.0, jnp.where(none, 0.0, low - high))
  return jnp.where(none, FLOOR, high + jnp.log1p(weight_low * jnp.expm1(gap)))


def _drop_ids(logits: Array, ids: Array) -> Array:
  """`logits` [..., V] with FLOOR at the given ids [..., K]; ids outside the vocabulary drop nothing."""
  drop = lambda row, out: row.at[out].set(FLOOR, mode='drop')
  for _ in range(logits.ndim - 1):      # row by row, not over flat rows: the compiler then sees that rows stay where they lie
    drop = jax.vmap(drop)
  return drop(logits, ids)
