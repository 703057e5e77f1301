"""In-context learning distillation: gold label and teacher's distribution at the query's label, and language modelling beside it.

Huang, Chen, Yu, McKeown 2022 (arXiv 2212.10670); figure 2 and section 3. Episodes: stages/episodes.py.
"""
from typing import Any, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from distill_jax.core.mean import Mean
from distill_jax.core.types import Method
from distill_jax.losses import soft as soft_lib, tokens
from distill_jax.losses.divergence import forward_kl
from distill_jax.methods import masked, teacher as marks
from distill_jax.methods.sft import penalty, row_keys

SOFT = ('teacher', 'smoothed')


def icl(roles, *, task=None, text=None, alpha: float | Mapping[str, float] = 0.5, beta: float = 0.0, soft: str = 'teacher',
        temperature: float = 1.0, candidates: Sequence[str] | None = None, teacher_length: int | None = None, mask_rate: float = 0.15) -> Method:
  """L = L_ICL + beta L_LM, each alpha CE(gold) + (1 - alpha) CE(teacher's distribution, student's).

  L_ICL stands at the label tokens of the query alone: the mean over them is taken example by example, then over the examples of the batch
  (demonstrations, inputs and the end of the text carry no loss). L_LM is the mean over the predicted tokens of plain texts. An example with a
  prompt is an episode, one without is plain text; the two never share a mean. What the batch holds of each is up to the rows: the train
  stage's pack='pairs' puts one of each into every row, so that a step has an in-context batch and a language-modelling batch.

  alpha: a number, or dict(start=0.0, end=1.0, steps=1000), linear in the number of the step and constant from `steps` on. alpha=1 is
    in-context tuning without a teacher (the baseline ICT), which then may be absent.
  soft: 'teacher', or 'smoothed', the control: the gold label with mass spread evenly over the other ids, as much as gives the teacher's entropy.
  candidates: label tokens as completions have them (' yes'); both sides are then distributions over these alone, hard term included; each must be
    one token, and so must every label, of this set. None: the whole vocabulary. L_LM is always over the whole vocabulary.
  teacher_length: tokens of the teacher's own rows, where episodes give it a context of its own ('teacher_prompt' of an example: other
    demonstrations, or ones that the student does not see: context distillation). Such rows hold one example (pack=False).
  mask_rate: share of the tokens of plain texts that an encoder is asked for, see methods/masked.py; decoders are asked for all.
  roles: 'student' and 'teacher', of one token-to-id map; labels may be early ('label/hidden'), but the teacher's head is needed live.
  Metrics: hard, soft and accuracy at label tokens, divergence KL(teacher || student) there; lm_hard, lm_soft, lm_accuracy; alpha.
  """
  at = _alpha(alpha)
  if not beta >= 0:
    raise ValueError(f'icl: beta={beta}, the weight of the language-modelling term, must be at least 0')
  if soft not in SOFT:
    raise ValueError(f'icl: soft={soft!r}: one of {", ".join(SOFT)}')
  student, teacher = roles['student'], roles.get('teacher')
  if teacher is None and at is not None:
    raise ValueError('icl: alpha below 1 learns from a teacher: name one in roles, or set alpha=1 (in-context tuning without a teacher)')
  text = text or student.text
  hide = marks.hide(marks.one_sided(roles))
  allowed = None if candidates is None else single_tokens(text, candidates)
  encoder = student.model.name == 'encoder'
  if encoder and teacher_length is not None:
    raise ValueError('icl: teacher_length= is for decoders; an encoder and its teacher read the same rows')

  def within(logits):
    """Logits of the candidates, -inf elsewhere."""
    if allowed is None:
      return hide(logits)
    kept = np.zeros(logits.shape[-1], bool)
    kept[allowed] = True
    return hide(jnp.where(kept.reshape((1,) * (logits.ndim - 1) + (-1,)), logits, -jnp.inf))

  def more(prompt, completion, example, about=None):
    if encoder:
      return masked.row(text, prompt, completion, example, rate=mask_rate, allowed=allowed)
    plain = not prompt
    out = {'plain': np.full(len(example['tokens']), plain, np.int32)}
    if not plain:
      out |= _at_label(text, completion, example, allowed)
    if teacher_length is not None:
      out |= _teacher_row(text, (about or {}).get('teacher_prompt', prompt), completion, length=teacher_length)
    elif about and about.get('teacher_prompt', prompt) != prompt:
      raise ValueError('icl: these episodes give the teacher a context of its own; say how long its rows are with teacher_length=')
    return out

  def seen(batch):
    """The rows that the teacher reads."""
    if 'teacher_tokens' not in batch:
      return batch
    places = jnp.broadcast_to(jnp.arange(batch['teacher_tokens'].shape[1])[None], batch['teacher_tokens'].shape)
    segments = batch['teacher_segments']
    return dict(tokens=batch['teacher_tokens'], segments=segments, positions=jnp.where(segments > 0, places, 0))

  def label(params, batch, key):
    hidden = teacher.model.apply(params['teacher'], seen(batch))['hidden']
    if 'teacher_tokens' in batch:
      L = batch['tokens'].shape[1]
      behind_B = jnp.sum(batch['teacher_segments'] > 0, axis=1) - jnp.sum(batch['segments'] > 0, axis=1)      # both end in the label
      place_BL = jnp.clip(jnp.arange(L)[None] + behind_B[:, None], 0, hidden.shape[1] - 1)
      hidden = jnp.take_along_axis(hidden, place_BL[:, :, None], axis=1)
    return {'hidden': hidden}

  def told(params, batch):
    if at is None:
      return ()
    out = teacher.model.apply(params['teacher'], seen(batch))      # only its head and dtype are used
    return ({'hidden': batch['label']['hidden'].astype(out['hidden'].dtype), 'head': out['head']},)

  def measured(narrow):
    def measure(logits, targets, *teacher_says):
      logits = narrow(logits)
      hard = tokens.cross_entropy(logits, targets)
      out = {'loss': hard, 'hard': hard, 'accuracy': tokens.correct(logits, targets)}
      if not teacher_says:
        return out
      told, share = narrow(teacher_says[0]), teacher_says[1]
      own = soft_lib.soft_cross_entropy(logits, told, temperature=temperature) if soft == 'teacher' else \
          soft_lib.smoothed_cross_entropy(logits, targets, tokens.entropy(told))
      return {**out, 'loss': share * hard + (1.0 - share) * own, 'soft': own, 'divergence': forward_kl(logits, told, temperature=temperature)}
    return measure

  def loss(params, batch, key):
    out = student.model.apply(params['student'], batch, key_B=row_keys(key, batch))
    weights, plain = batch['weights'], batch.get('plain', jnp.zeros_like(batch['tokens'])) > 0
    share = () if at is None else (jnp.full(weights.shape, 1.0) * at(params.get('memory')),)
    told_ = told(params, batch)
    episode = tokens.means(measured(within), jnp.where(plain, 0.0, weights), out, batch['targets'], *told_, *share)
    terms, metrics = {'icl': episode['loss']}, {name: mean for name, mean in episode.items() if name != 'loss'}
    if beta > 0:
      texts = tokens.means(measured(hide), jnp.where(plain, weights, 0.0), out, batch['targets'], *told_, *share)
      terms['lm'] = texts['loss'].scale(beta)
      metrics |= {f'lm_{name}': mean for name, mean in texts.items() if name not in ('loss', 'divergence')}
    if isinstance(alpha, Mapping):
      metrics['alpha'] = Mean.of(share[0], weights)
    return {**terms, **penalty(out)}, metrics, {}

  scheduled = {} if not isinstance(alpha, Mapping) else dict(
      memory=lambda params: {'step': jnp.zeros((), jnp.int32)}, after=lambda state, batch, stats: {'step': state.step + 0})
  return Method(loss, None if at is None else label, more=more, **scheduled)


def _alpha(alpha):
  """memory -> the share of the hard term in this step; None where it is 1 throughout and no teacher is asked."""
  if not isinstance(alpha, Mapping):
    if not 0 <= alpha <= 1:
      raise ValueError(f'icl: alpha={alpha} is the share of the gold label, from 0 (teacher alone) to 1 (no teacher)')
    return None if alpha == 1 else lambda memory: jnp.float32(alpha)
  if set(alpha) != {'start', 'end', 'steps'} or not (0 <= alpha['start'] <= 1 and 0 <= alpha['end'] <= 1 and alpha['steps'] >= 1):
    raise ValueError(f'icl: alpha={dict(alpha)}; a schedule is dict(start=, end=, steps=) with shares from 0 to 1 and at least one step')
  start, end, steps = (alpha[name] for name in ('start', 'end', 'steps'))
  return lambda memory: start + (end - start) * jnp.minimum(memory['step'].astype(jnp.float32) / steps, 1.0)


def single_tokens(text, candidates: Sequence[str]) -> np.ndarray:
  """The id of each candidate. ValueError for one of no or several tokens, and for two of the same."""
  ids: dict[int, str] = {}
  for candidate, tokens_of in zip(candidates, text.encode_many(candidates)):
    if len(tokens_of) != 1:
      raise ValueError(f'icl: the candidate {candidate!r} is {len(tokens_of)} tokens for this tokenizer; a candidate set holds single tokens. Leave it '
                       'out, or use the whole vocabulary (candidates=None) and options scored by their mean loss')
    if tokens_of[0] in ids:
      raise ValueError(f'icl: the candidates {ids[tokens_of[0]]!r} and {candidate!r} are one token')
    ids[tokens_of[0]] = candidate
  return np.asarray(sorted(ids), np.int32)


def _at_label(text, completion: str, example: Mapping[str, Any], allowed) -> dict[str, np.ndarray]:
  """Weights of an episode: 1 / n at each of the n label tokens, 0 elsewhere, the end of the text included."""
  ids = text.encode(completion)
  if not ids:
    raise ValueError(f'icl: the label {completion!r} has no tokens')
  if allowed is not None and not set(ids) <= set(allowed.tolist()):
    raise ValueError(f'icl: the label {completion!r} is not in the candidate set of {len(allowed)} tokens: add it to candidates=, or leave its examples out')
  weights = np.zeros(len(example['tokens']), np.float32)
  weights[-len(ids) - 1:-1] = 1.0 / len(ids)
  return {'weights': weights}


def _teacher_row(text, prompt: str, completion: str, *, length: int) -> dict[str, np.ndarray]:
  """'teacher_*' of an example: the teacher's prompt before the same completion."""
  asked, written = ([] if text.bos_id is None else [text.bos_id]) + text.encode(prompt), text.encode(completion)
  whole = asked + written      # the last token is read to predict the end, which nobody is asked for
  if len(whole) > length:
    raise ValueError(f'icl: an episode has {len(whole)} tokens for the teacher, teacher_length={length}: raise it, or give it fewer demonstrations')
  out = {name: np.zeros(length, np.int32) for name in ('teacher_tokens', 'teacher_segments')}
  out['teacher_tokens'][:len(whole)], out['teacher_segments'][:len(whole)] = whole, 1
  return out
