"""Likelihood of candidates: equal to a loop of single rows through score.py, whatever goes together."""
import functools

import jax
import numpy as np
import pytest
import toys

from distill_jax.core import mesh as mesh_lib
from distill_jax.core.types import Role
from distill_jax.data import text as text_lib
from distill_jax.decode import likelihood, score
from distill_jax.models import MODELS

SHAPE = dict(vocab_size=258, width=16, layers=2, heads=2, mlp_width=32)
MODEL = dict(
    llama=lambda: MODELS['transformer'](**SHAPE, kv_heads=1, max_length=128, init='fan_in'),
    gpt2=lambda: MODELS['transformer'](**SHAPE, norm='layer', positions='learned', activation='gelu_tanh', gated=False, attention_bias=True,
                                       mlp_bias=True, max_length=128, init='fan_in'),
    local=lambda: MODELS['transformer'](**SHAPE, max_length=128, pattern=('local', 'global'), window=5, init='fan_in'),
    t5=lambda: MODELS['encoder_decoder'](**SHAPE, gated=True, activation='gelu_tanh', tied=False, buckets=8, furthest=10),
    fading=lambda: toys.fading(258),
)
PROMPTS = ['', 'a', 'What is it? ' * 3, 'colour: red\ncolour: blue\nshape:', 'x' * 45, 'no candidates']
TEXTS = [['x', 'why'], ['a', 'b', 'a longer candidate', 'é'], [' yes', ' no', ' maybe so'], [' round'], [chr(97 + i) + 'q' * (i % 4) for i in range(11)], []]


def made(name, seed=0):
  model = MODEL[name]()
  params = jax.tree.map(lambda x: x * 3 if x.ndim > 1 else x, model.init(jax.random.key(seed)))      # far from uniform
  return Role(model, toys.letters()), params


@functools.lru_cache(maxsize=None)
def scorer(model):
  return jax.jit(lambda params, row: score.score(model, params, row))


def one_by_one(role, params, prompts, texts, *, length=112):
  """Each candidate alone, as a row of its own, padded so that all have one shape."""
  def padded(name, ids):
    held = np.zeros((1, length), np.int32)
    held[0, :len(ids)] = ids
    here = (np.arange(length) < len(ids))[None].astype(np.int32)
    return {name: held, f'{name}_segments'.replace('tokens_', ''): here, f'{name}_positions'.replace('tokens_', ''): here * np.arange(length)[None]}
  out = []
  for prompt, several in zip(prompts, texts):
    out.append([])
    for text in several:
      ids = role.text.encode(text)
      if role.model.start_id is None:
        whole, source = (role.text.encode(prompt) or [role.text.eos_id]) + ids, {}
      else:
        whole, source = [role.model.start_id] + ids, padded('source', role.text.encode_whole([prompt])[0])
      row = {**padded('tokens', whole[:-1]), 'targets': padded('targets', whole[1:])['targets'], **source}
      logps = np.asarray(scorer(role.model._replace(axes=(), trainable=(), config=None))(params, row))[0]
      out[-1].append((float(logps[len(whole) - 1 - len(ids):len(whole) - 1].sum()), len(ids)))
  return out


def assert_alike(found, want):
  assert [[n for _, n in several] for several in found] == [[n for _, n in several] for several in want]
  np.testing.assert_allclose([x for several in found for x, _ in several], [x for several in want for x, _ in several], rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize('name', [pytest.param(name, marks=[pytest.mark.slow] * (name in ('llama', 'local', 't5'))) for name in MODEL])
def test_equals_single_rows(name):
  role, params = made(name)
  assert_alike(likelihood.of_texts(role, params, PROMPTS, TEXTS, batch=16), one_by_one(role, params, PROMPTS, TEXTS))


@pytest.mark.parametrize('batch', [64, pytest.param(1, marks=pytest.mark.slow)])
def test_what_goes_together_changes_nothing(batch):
  role, params = made('llama')
  order = [3, 1, 4, 0, 2]
  want = likelihood.of_texts(role, params, PROMPTS, TEXTS, batch=16)
  found = likelihood.of_texts(role, params, [PROMPTS[i] for i in order], [TEXTS[i] for i in order], batch=batch)
  assert_alike(found, [want[i] for i in order])


def test_what_all_prompts_begin_with_is_read_once():
  role, params = made('llama')
  prompts = ['The same long instruction for all of them: ' + end for end in ('one', 'two', 'three')]
  texts = [[' a', ' bc'], [' d'], [' efg', 'h']]
  assert_alike(likelihood.of_texts(role, params, prompts, texts), one_by_one(role, params, prompts, texts))


def test_over_devices():
  role, params = made('llama')
  mesh = mesh_lib.make_mesh({'data': 8})
  assert_alike(likelihood.of_texts(role, params, PROMPTS, TEXTS, batch=16, mesh=mesh), likelihood.of_texts(role, params, PROMPTS, TEXTS, batch=16))


def test_all_tokens_together_are_certain():
  """Every id of the vocabulary as a candidate: the probabilities add up to 1."""
  role, params = made('gpt2')
  class Ids:      # a tokenizer whose texts are ids
    eos_id, pad_id, bos_id = 1, 0, None
    encode_many = staticmethod(lambda texts: [[int(word) for word in text.split()] for text in texts])
  every = [str(i) for i in range(258)]
  found = likelihood.of_texts(role._replace(text=Ids()), params, ['5 7', '9'], [every, every])
  np.testing.assert_allclose([sum(np.exp(x) for x, _ in several) for several in found], 1.0, rtol=1e-5)


def test_bad_input():
  role, params = made('llama')
  with pytest.raises(ValueError, match="candidate '' of prompt 0 .*has no tokens"):
    likelihood.of_texts(role, params, ['ab'], [['c', '']])
  with pytest.raises(ValueError, match='2 prompts and 1 lists of candidates'):
    likelihood.of_texts(role, params, ['ab', 'c'], [['c']])
  with pytest.raises(ValueError, match='the model reads 128: take fewer or shorter demonstrations'):
    likelihood.of_texts(role, params, ['x' * 127], [['c', 'de', 'fgh']])
  assert likelihood.of_texts(role, params, ['ab'], [[]]) == [[]] and likelihood.of_texts(role, params, [], []) == []
  encoder = MODELS['encoder'](**SHAPE, max_length=64, lm_head=True)
  with pytest.raises(ValueError, match='encoder: it writes no text'):
    likelihood.of_texts(Role(encoder, text_lib.train_bpe(['a'], size=258)), {}, ['a'], [['b']])


@pytest.mark.parametrize('name', ['llama', pytest.param('gpt2', marks=pytest.mark.slow), 't5'])
def test_what_is_given_is_read_and_not_counted(name):
  """p(b | prompt, a) = p(a b | prompt) / p(a | prompt), also where some candidates have nothing given."""
  role, params = made(name)
  prompts, given = ['x\n', 'a longer prompt'], [['ask', '', 'what then'], ['q']]
  texts = [['yes', 'no', 'it is so'], ['!']]
  both = [[a + b for a, b in zip(*pair)] for pair in zip(given, texts)]
  found = likelihood.of_texts(role, params, prompts, texts, given=given, batch=16)
  whole = likelihood.of_texts(role, params, prompts, both, batch=16)
  for i, several in enumerate(given):
    for k, before in enumerate(several):
      alone = likelihood.of_texts(role, params, [prompts[i]], [[before]])[0][0] if before else (0.0, 0)
      assert found[i][k][1] == len(texts[i][k])
      assert found[i][k][0] == pytest.approx(whole[i][k][0] - alone[0], abs=1e-3)
  with pytest.raises(ValueError, match='given= needs a text'):
    likelihood.of_texts(role, params, prompts, texts, given=given[:1])
