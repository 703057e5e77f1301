"""MiniLLM: reverse KL of whole texts by policy gradient, on texts that student and teacher write together (Gu 2023, arXiv 2306.08543)."""
import functools

import jax
import jax.numpy as jnp

from distill_jax.core.mean import Mean
from distill_jax.core.types import Method
from distill_jax.decode import mixture, rollout as rollouts
from distill_jax.losses import divergence, policy, tokens
from distill_jax.methods import teacher as marks
from distill_jax.methods.sft import penalty, row_keys


def minillm(roles, *, task=None, text=None, alpha: float = 0.2, clip: float = 0.2, max_new_tokens: int = 128) -> Method:
  """L = mean over written tokens of w_t (KL(q_t || p_t) - min(rho_t R_{t+1}, clip(rho_t, 1 - eps, 1 + eps) R_{t+1})).

  q student, p teacher, y ~ p~ = alpha p + (1 - alpha) q, token by token, at temperature 1 (teacher-mixed sampling). The gradient
  is that of KL(q || p) over whole texts, in two parts (single-step decomposition):
    single  sum_t w_t d KL(q_t || p_t), over the whole vocabulary;
    long    - sum_t w_t R_{t+1} d log q(y_t), with the return to go normalised by length: R_{t+1} is the mean over t' > t of
            log p(y_t') / q(y_t'), 0 for the last token.
  w_t = q(y_t) / p~(y_t), the paper's one-step importance weight. rho_t = q(y_t) / q_old(y_t), q_old the student that wrote, clipped as in
  PPO (eps = `clip`); a rollout serves one step here, so rho_t leaves 1 by dropout alone. w, R and q_old are data: computed in the rollout,
  without dropout or gradient.
  Left out: the language-modelling term on pretraining text (the paper's last), which needs a second stream of batches; the
  mean is over tokens of the batch, where the paper's is over texts.

  roles: 'student', trained first by sft as in the paper, and 'teacher', of one token-to-id map. max_new_tokens: where a text is cut, unless
  its row ends before. Rows of one example (pack=False). A batch that no rollout has seen counts as w = 1, R = 0: reverse KL of its text.
  Metrics: divergence (KL(q_t || p_t), unweighted), returns, importance, accuracy, and those of rollouts as in gkd.
  """
  if not 0 <= alpha < 1:
    raise ValueError(f'minillm: alpha={alpha} is the teacher\'s part in the sampling, from 0 (none) to below 1')
  if not clip > 0:
    raise ValueError(f'minillm: clip={clip} must be above 0')
  if max_new_tokens < 1:
    raise ValueError(f'minillm: max_new_tokens={max_new_tokens} must be at least 1')
  if 'teacher' not in roles:
    raise ValueError('minillm: the teacher marks what is written, so it must be there: name a teacher in roles')
  hide = marks.hide(marks.one_sided(roles))
  student, teacher = roles['student'], roles['teacher']
  text = text or student.text

  def label(params, batch, key):
    return marks.states(teacher, params, batch)

  def measure(logits, targets, told, data):
    logits, told = hide(logits), hide(told)
    each = divergence.reverse_kl(logits, told)
    single, long = each, jnp.zeros_like(each)
    if data:
      long = policy.clipped(-tokens.cross_entropy(logits, targets), data['old_logps'], data['returns'], clip=clip)
      single, long = data['importance'] * each, data['importance'] * long
    return {'loss': single + long, 'divergence': each, 'accuracy': tokens.correct(logits, targets)}

  def loss(params, batch, key):
    out = student.model.apply(params['student'], batch, key_B=row_keys(key, batch))
    data = {name: batch[name] for name in ('importance', 'returns', 'old_logps') if name in batch}
    means = tokens.means(measure, batch['weights'], out, batch['targets'], marks.live(teacher, params, batch), data)
    more = {name: Mean.of(data[name], batch['weights']) for name in data if name != 'old_logps'}
    metrics = {name: means[name] for name in ('divergence', 'accuracy')}
    return {'minillm': means['loss'], **penalty(out)}, {**metrics, **more, **rollouts.counts(batch)}, {}

  def write(params, batch, key, mesh):
    """Rows that both models wrote, with what the policy gradient needs to know of them."""
    writer, held = student.model, params['student']
    if alpha > 0:
      writer = mixture.mixed(student.model, teacher.model, share=alpha, hide=hide)
      held = {'first': params['student'], 'second': params['teacher']}
    every = jnp.ones(len(batch['row']), bool)
    rows, drawn_BL = rollouts.write(writer, held, batch, every, key, text=text, max_new_tokens=max_new_tokens, mesh=mesh)
    def says(logits, told, targets):
      return {'student': -tokens.cross_entropy(hide(logits), targets), 'teacher': -tokens.cross_entropy(hide(told), targets)}
    outs = student.model.apply(params['student'], rows), teacher.model.apply(params['teacher'], rows)
    logps = tokens.per_token(says, rows['weights'], *outs, rows['targets'])
    counts = rows['weights'] > 0
    weight = jnp.where(counts, jnp.exp(logps['student'] - drawn_BL), 0.0) if alpha > 0 else counts.astype(jnp.float32)
    returns = policy.returns_to_go(logps['teacher'] - logps['student'], counts)
    return {**rows, 'importance': weight, 'returns': returns, 'old_logps': logps['student']}

  @functools.lru_cache(maxsize=None)
  def writer_on(sharding):
    return jax.jit(functools.partial(write, mesh=sharding.mesh), out_shardings=sharding)

  def rollout(state, frozen, batch, key):
    rollouts.check(batch, text, method='minillm')
    params = {'student': state.params['student'], 'teacher': frozen['teacher']}
    return writer_on(batch['row'].sharding)(params, {name: x for name, x in batch.items() if name != 'label'}, key), state.memory

  return Method(loss, label, rollout=rollout, early=False)
