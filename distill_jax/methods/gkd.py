"""Generalised knowledge distillation: the student writes some of the rows, the teacher marks every token (Agarwal 2023, arXiv 2306.13649)."""
import functools

import jax

from distill_jax.core.types import Method
from distill_jax.decode import rollout as rollouts
from distill_jax.losses import divergence, tokens
from distill_jax.methods import teacher as marks
from distill_jax.methods.sft import penalty, row_keys


def gkd(roles, *, task=None, text=None, beta: float = 0.5, on_policy: float = 1.0, max_new_tokens: int = 128, temperature: float = 1.0,
        sampling_temperature: float = 1.0, top_p: float = 1.0, top_k: int = 0) -> Method:
  """L = mean over target tokens of D(T || S), on rows that the student wrote just before the step and on rows of the data.

  Algorithm 1 of the paper: with probability `on_policy` (its lambda; here drawn row by row, from the run's key, the step and the row's id)
  a row keeps its prompt and the student continues it, else the data's own text stays. No gradient flows through the sampling.

  D by beta: 0 < beta < 1 is jsd(beta) = beta KL(T || M) + (1 - beta) KL(S || M), M = beta T + (1 - beta) S (equation 1 of the paper);
  beta = 0 is forward_kl KL(T || S); beta = 1 is reverse_kl KL(S || T). The interior vanishes towards both ends (jsd / beta -> forward_kl,
  jsd / (1 - beta) -> reverse_kl), so values of other betas are not on one scale. TRL's generalized_jsd_loss has the same three cases (its
  docstring only speaks of interpolation); it lacks the factor temperature ** 2.

  roles: 'student' and 'teacher', of one token-to-id map; the teacher marks live.
  max_new_tokens: where a completion is cut, unless the row ends before. sampling_temperature, top_p, top_k: of the student's sampling;
    sampling_temperature 0 is greedy. temperature: of both distributions in D.
  Rows of one example (pack=False) unless on_policy=0, which is plain distillation and may read labels of a label stage. A batch with
  rollouts drops its labels: they are of other tokens.
  Metrics: accuracy against the targets; on_policy (share of rows written), finished (share of these that ended by EOS), written_tokens.
  """
  if not 0 <= on_policy <= 1:
    raise ValueError(f'gkd: on_policy={on_policy} is the share of rows that the student writes, from 0 (none) to 1 (all)')
  if max_new_tokens < 1:
    raise ValueError(f'gkd: max_new_tokens={max_new_tokens} must be at least 1')
  if 'teacher' not in roles:
    raise ValueError('gkd: the teacher marks what the student writes, so it must be there: name a teacher in roles')
  divide, hide = _distance(beta, temperature), marks.hide(marks.one_sided(roles))
  student, teacher = roles['student'], roles['teacher']
  text = text or student.text

  def label(params, batch, key):
    return marks.states(teacher, params, batch)

  def measure(logits, targets, told):
    return {'loss': divide(hide(logits), hide(told)), 'accuracy': tokens.correct(logits, targets)}

  def loss(params, batch, key):
    out = student.model.apply(params['student'], batch, key_B=row_keys(key, batch))
    means = tokens.means(measure, batch['weights'], out, batch['targets'], marks.live(teacher, params, batch))
    return {'divergence': means['loss'], **penalty(out)}, {'accuracy': means['accuracy'], **rollouts.counts(batch)}, {}

  @functools.lru_cache(maxsize=None)
  def writer(sharding):
    def write(params, batch, key):
      return rollouts.write(student.model, params, batch, rollouts.drawn(batch, key, share=on_policy), key, text=text, mesh=sharding.mesh,
                            max_new_tokens=max_new_tokens, temperature=sampling_temperature, top_p=top_p, top_k=top_k)[0]
    return jax.jit(write, out_shardings=sharding)

  def rollout(state, frozen, batch, key):
    rollouts.check(batch, text, method='gkd')
    unmarked = {name: x for name, x in batch.items() if name != 'label'}
    return writer(batch['row'].sharding)(state.params['student'], unmarked, key), state.memory

  if on_policy == 0:
    return Method(loss, label)
  return Method(loss, label, rollout=rollout, early=False)


def _distance(beta: float, temperature: float):
  """D(student logits, teacher logits) of a beta in [0, 1]."""
  if not 0 <= beta <= 1:
    raise ValueError(f'gkd: beta={beta} must lie in [0, 1]: 0 is forward_kl, 1 is reverse_kl, what is between is jsd(beta)')
  if beta in (0, 1):
    return functools.partial(divergence.forward_kl if beta == 0 else divergence.reverse_kl, temperature=temperature)
  return functools.partial(divergence.jsd, beta=beta, temperature=temperature)
