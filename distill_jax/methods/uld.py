"""Universal logit distillation: a teacher of another tokenizer, by sorted probabilities over common spans (Boizard 2024, arXiv 2402.12030)."""
import bisect
from typing import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from distill_jax.core.mean import Mean
from distill_jax.core.types import Method
from distill_jax.decode import score
from distill_jax.losses import tokens
from distill_jax.losses.distance import sorted_gap
from distill_jax.methods.sft import hard, penalty, row_keys


def uld(roles, *, task=None, text=None, strength: float = 1.5, teacher_length: int = 256) -> Method:
  """L = CE(targets) + strength * mean over spans of sum_i |p_i - q_i|, p and q sorted, most likely first (the paper uses 1.5).

  The completion of a row is tokenised by both tokenizers and cut into spans: the smallest pieces of text, by byte offsets, at whose ends a
  token of either ends. EOS is a span of its own. By the chain rule a span's distribution is that of its last token times the
  probability of its earlier ones: m(v) = prod_{i < last} p(y_i) p(v | ...); where a token is a span it is the token's own distribution, so
  two equal tokenizers give plain ULD. (The paper pairs the n-th token with the n-th; pairing by text is that of TRL's GOLD, strategy
  'bayesian'.) The shorter vocabulary is filled up with zeros. A span weighs what its last target does, 0 where one of its targets has
  weight 0.
  Gradients flow to all of the student's tokens of a span. Differences within float noise count 0: the slope of |x| does not fade.

  roles: 'student' and 'teacher', each with its tokenizer. teacher_length: the most tokens that an example has for the teacher.
  Labels are early ('label/hidden' at the last target of each span, 'label/span_logps'), but the teacher's head is needed live.
  Rows of one example (pack=False).
  """
  if not strength >= 0:
    raise ValueError(f'uld: strength={strength} must be at least 0')
  if 'teacher' not in roles:
    raise ValueError('uld: the teacher\'s head is needed: name a teacher in roles')
  student, teacher = roles['student'], roles['teacher']

  def more(prompt, completion, example, about=None):
    return align(student.text, teacher.text, prompt, completion, example, teacher_length=teacher_length)

  def seen(batch):
    segments = batch['teacher_segments']
    places = jnp.broadcast_to(jnp.arange(segments.shape[1], dtype=jnp.int32)[None], segments.shape)
    positions = jnp.where(segments > 0, places, 0)
    return dict(tokens=batch['teacher_tokens'], targets=batch['teacher_targets'], segments=segments, positions=positions)

  def label(params, batch, key):
    rows, spans = seen(batch), batch['teacher_spans']
    out, logps = teacher.model.apply(params['teacher'], rows), score.score(teacher.model, params['teacher'], rows)
    last = last_of(spans)
    places = jnp.broadcast_to(jnp.arange(spans.shape[1], dtype=jnp.int32)[None], spans.shape)
    found = at_span(jnp.where(last, places, 0), spans, batch['spans'])
    return {'hidden': jnp.take_along_axis(out['hidden'], found[:, :, None], axis=1),
            'span_logps': at_span(jnp.where(last, 0.0, logps), spans, batch['spans'])}

  def compare(logits, told, logp, told_logp):
    """The distance, and its slope by `logp`."""
    gap = lambda logp: sorted_gap(logits, told, logp, told_logp)
    value, pull = jax.vjp(gap, logp)
    return {'gap': value, 'slope': jax.lax.stop_gradient(pull(jnp.ones_like(value))[0])}

  def loss(params, batch, key):
    weights, spans = batch['weights'], batch['spans']
    out = student.model.apply(params['student'], batch, key_B=row_keys(key, batch))
    said = tokens.per_token(hard, weights, out, batch['targets'])
    last = last_of(spans)
    counts = jnp.where(last & (at_span((weights <= 0).astype(jnp.float32), spans, spans) == 0), weights, 0.0)
    logp = at_span(jnp.where(last, 0.0, -said['loss']), spans, spans)
    head = teacher.model.apply(params['teacher'], seen(batch))      # only head and dtype of this forward pass are used
    told = {'hidden': batch['label']['hidden'].astype(head['hidden'].dtype), 'head': head['head']}
    fixed = jax.lax.stop_gradient
    each = tokens.per_token(compare, counts, out, told, fixed(logp), batch['label']['span_logps'], vocabularies='apart')
    value = each['gap'] + fixed(each['slope']) * (logp - fixed(logp))      # `per_token` has no gradient to what is not logits
    distance = Mean.of(value, counts)
    terms = {'cross_entropy': Mean.of(said['loss'], weights), 'uld': distance.scale(strength), **penalty(out)}
    return terms, {'divergence': distance, 'accuracy': Mean.of(said['accuracy'], weights)}, {}

  return Method(loss, label, more=more)


def last_of(spans: jax.Array) -> jax.Array:
  """bool [B, L], True at the last target of each span."""
  after = jnp.pad(spans[:, 1:], ((0, 0), (0, 1)))
  return (spans > 0) & (spans != after)


def at_span(values: jax.Array, spans: jax.Array, wanted: jax.Array) -> jax.Array:
  """values [B, M] summed by their spans [B, M], read at the spans `wanted` [B, L] -> [B, L]."""
  sums = jax.vmap(lambda v, s: jnp.zeros(v.shape[0] + 1, v.dtype).at[s].add(v))(values, spans)
  return jnp.take_along_axis(sums, wanted, axis=1)


def align(ours, theirs, prompt: str, completion: str, example, *, teacher_length: int) -> dict[str, np.ndarray]:
  """The keys 'spans' [n] and 'teacher_*' [teacher_length] of an example. ours, theirs: data.text.Text of student and teacher."""
  start = [] if theirs.bos_id is None else [theirs.bos_id]
  asked = start + theirs.encode(prompt)
  written, their_ends = theirs.encode_ends(completion)
  our_ends = ours.encode_ends(completion)[1]
  their_end = [] if theirs.eos_id is None else [theirs.eos_id]
  our_spans, their_spans = common_spans(our_ends, their_ends)
  if their_end:      # the end of the text is a span that both have
    number = max([0, *our_spans]) + 1
    our_spans, their_spans = [*our_spans, number], [*their_spans, number]
  else:
    our_spans = [*our_spans, 0]
  whole = [*asked, *written, *their_end]
  if len(whole) - 1 > teacher_length:
    raise ValueError(f'uld: an example has {len(whole) - 1} tokens for the teacher, teacher_length={teacher_length}: raise it')
  out = {'spans': np.zeros(len(example['tokens']), np.int32)}
  out['spans'][len(example['tokens']) - len(our_spans):] = our_spans
  first = len(whole) - 1 - len(their_spans)
  rows = dict(tokens=(0, whole[:-1]), targets=(0, whole[1:]), segments=(0, [1] * (len(whole) - 1)), spans=(first, their_spans))
  for name, (at, values) in rows.items():
    out[f'teacher_{name}'] = np.zeros(teacher_length, np.int32)
    out[f'teacher_{name}'][at:at + len(values)] = values
  return out


def common_spans(ours: Sequence[int], theirs: Sequence[int]) -> tuple[list[int], list[int]]:
  """The span 1, 2, ... of each token of two tokenisations of a text, from where tokens end; 0 for what comes after the last common end."""
  common = sorted(set(ours) & set(theirs) - {0})
  number = lambda end: n if (n := bisect.bisect_left(common, end) + 1) <= len(common) else 0
  return [number(end) for end in ours], [number(end) for end in theirs]
