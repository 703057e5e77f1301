"""Knowledge distillation on the teacher's next-token distributions, beside cross-entropy (Hinton et al. 2015, arXiv 1503.02531)."""
import functools

import jax.numpy as jnp

from distill_jax.core.types import Method
from distill_jax.decode import score
from distill_jax.losses import divergence, tokens
from distill_jax.methods import teacher as marks
from distill_jax.methods.sft import penalty, row_keys

_OBJECTIVES = {      # name -> (function, the settings it needs)
    'forward_kl': (divergence.forward_kl, ()),
    'reverse_kl': (divergence.reverse_kl, ()),
    'jsd': (divergence.jsd, ('beta',)),
    'skew_kl': (divergence.skew_kl, ('skew',)),
}


def logit_kd(roles, *, task=None, text=None, alpha: float = 0.5, temperature: float = 1.0, k: int | None = None,
             objective: str = 'forward_kl', beta: float | None = None, skew: float | None = None) -> Method:
  """L = (1 - alpha) CE(targets) + alpha D(teacher, student) over target tokens, each a mean over the weight of the whole batch.

  roles: 'student' and 'teacher' (which may be absent when `k` targets come from a label stage).
  k: the teacher's k most likely tokens with one rest class (forward KL; compact, may be cached); None: its whole distribution,
    kept as hidden states, from which its head makes logits (any objective).
  objective: 'forward_kl', 'reverse_kl', 'jsd' (needs beta), 'skew_kl' (needs skew), see losses/divergence.py.
  """
  if objective not in _OBJECTIVES:
    raise ValueError(f'logit_kd: objective={objective!r}, one of {", ".join(_OBJECTIVES)}')
  function, settings = _OBJECTIVES[objective]
  if k is not None and objective != 'forward_kl':
    raise ValueError(f'logit_kd: k={k} keeps a rest class, which only forward_kl can use; objective={objective!r} needs k=None')
  given = {name: value for name, value in dict(beta=beta, skew=skew).items() if value is not None}
  if set(given) != set(settings):
    raise ValueError(f'logit_kd: objective={objective!r} takes {list(settings) or "no further setting"}, given {sorted(given)}')
  student, teacher = roles['student'], roles.get('teacher')
  one_sided = marks.one_sided(roles)
  hide = marks.hide(one_sided)
  if teacher is None and k is None:
    raise ValueError('logit_kd: without k the teacher\'s head is needed: name a teacher in roles, or set k')
  function = functools.partial(function if k is None else divergence.top_k_kl, temperature=temperature, **given)

  def label(params, batch, key):
    if k is None:
      return marks.states(teacher, params, batch)
    top_ids, top_logps = score.top_k(teacher.model, params['teacher'], batch, k=k, temperature=temperature, where_BL=batch['weights'])
    return {'top_ids': top_ids, 'top_logps': top_logps}

  def told(params, batch):
    """What the teacher says: its hidden states and head, or its top k."""
    if k is None:
      return (marks.live(teacher, params, batch),)
    ids = batch['label']['top_ids']
    ids = jnp.where(jnp.isin(ids, one_sided), -1, ids) if len(one_sided) else ids      # their mass belongs to the rest
    return ids, batch['label']['top_logps']

  def distance(logits, first, *rest):
    return function(hide(logits), hide(first) if k is None else first, *rest)

  def both(logits, targets, *teacher_says):
    hard, soft = tokens.cross_entropy(logits, targets), distance(logits, *teacher_says)
    loss = (1.0 - alpha) * hard + alpha * soft       # of one denominator, so they are one term
    return {'loss': loss, 'cross_entropy': hard, 'divergence': soft, 'accuracy': tokens.correct(logits, targets)}

  def loss(params, batch, key):
    out = student.model.apply(params['student'], batch, key_B=row_keys(key, batch))
    means = tokens.means(both, batch['weights'], out, batch['targets'], *told(params, batch))
    return {'distillation': means['loss'], **penalty(out)}, {name: mean for name, mean in means.items() if name != 'loss'}, {}

  says = dict(k=k) if k is None else dict(k=k, temperature=float(temperature))
  return Method(loss, None if teacher is None else label, label_settings=says)
