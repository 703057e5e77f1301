"""One token-to-id map for two models: ids that differ are refused, ids that one side lacks are hidden from both."""
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.core.types import Head, Model, Role
from distill_jax.data import text as text_lib
from distill_jax.methods import METHODS, teacher

PAIRED = ['logit_kd', 'gkd', 'minillm']


def named(tokens):
  """The text side of these tokens by id, None for a hole."""
  text = types.SimpleNamespace(vocab=lambda: tokens, eos_id=0, pad_id=0, vocab_size=len(tokens))
  text.require_same = lambda other, **keywords: text_lib.Text.require_same(text, other, **keywords)
  return text


def table(size, text):
  def apply(params, batch, *, key_B=None, **_):
    return {'hidden': jnp.take(params['logits'], batch['tokens'], axis=0), 'head': Head(jnp.eye(size))}
  return Role(Model(None, apply, (), None), text)


@pytest.mark.parametrize('name', PAIRED)
def test_other_tokenizers_are_refused_with_the_first_ids_and_what_works(name):
  roles = {'student': table(3, named(['a', 'b', 'c'])), 'teacher': table(3, named(['a', 'x', 'y']))}
  with pytest.raises(ValueError, match=r"id 1 is 'x' for teacher and 'b' for student, id 2 is 'y' for teacher and 'c' for student "
                                       r'\(2 of 3 ids differ\).*sft on the text that one of them writes, or uld'):
    METHODS[name](roles)


def test_ids_that_only_one_side_has():
  roles = {'student': table(4, named(['a', 'b', None, 'd'])), 'teacher': table(6, named(['a', None, None, 'd', 'e', 'f']))}
  assert teacher.one_sided(roles).tolist() == [1, 4, 5]
  assert not len(teacher.one_sided({'student': roles['student']})) and not len(teacher.one_sided({**roles, 'teacher': table(6, None)}))
  hidden = teacher.hide(np.asarray([1, 4, 5]))(jnp.zeros((2, 4)))
  assert np.isneginf(hidden).tolist() == [[False, True, False, False]] * 2


BATCH = dict(tokens=np.asarray([[0, 1, 2]], np.int32), targets=np.asarray([[1, 2, 0]], np.int32), segments=np.ones((1, 3), np.int32),
             weights=np.ones((1, 3), np.float32), row=np.zeros((1, 2), np.uint32))


@pytest.mark.parametrize('name, keywords', [('logit_kd', dict(alpha=1.0)), ('logit_kd', dict(alpha=1.0, k=6)), ('gkd', dict(on_policy=0.0, beta=0))], ids=str)
def test_what_one_side_lacks_counts_on_neither(name, keywords):
  """A student of 5 rows, a teacher padded to 8; tokens 0..3, the teacher alone has 4. The distance is that over ids 0..3."""
  rng = np.random.default_rng(0)
  params = {'student': {'logits': rng.normal(size=(3, 5)).astype(np.float32)}, 'teacher': {'logits': rng.normal(size=(3, 8)).astype(np.float32)}}
  if 'k' in keywords:
    params['teacher']['logits'][:, 4:] = -30.0      # a kept mass that the student lacks goes to the rest class: here there is none to speak of
  roles = {'student': table(5, named(list('abcd'))), 'teacher': table(8, named(list('abcde')))}
  method = METHODS[name](roles, **keywords)
  def total(student):
    given = {**params, 'student': student}
    return sum(term.value for term in method.loss(given, {**BATCH, 'label': method.label(given, BATCH, None)}, None)[0].values())
  value, grads = jax.jit(jax.value_and_grad(total))(params['student'])
  t, s = (jax.nn.log_softmax(params[role]['logits'][:, :4]) for role in ('teacher', 'student'))
  assert float(value) == pytest.approx(float((jnp.exp(t) * (t - s)).sum(-1).mean()), rel=1e-4)
  assert not np.asarray(grads['logits'])[:, 4].any() and np.asarray(grads['logits'])[:, :4].any()
