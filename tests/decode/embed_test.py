"""Embed: vectors are those of each text alone, in the order of the texts."""
import functools

import jax
import numpy as np
import pytest
import toys

from distill_jax.core import mesh as mesh_lib
from distill_jax.core.types import Role
from distill_jax.decode import embed
from distill_jax.models import MODELS

TEXTS = ['a', 'a longer text of some words', 'b' * 40, 'why', 'a']


@functools.cache
def alone():
  """(model, params, the vector of each text by itself)."""
  model, text = MODELS['encoder'](vocab_size=258, width=16, layers=2, heads=2, mlp_width=32, max_length=32), toys.letters()
  params = jax.tree.map(lambda x: x * 3 if x.ndim > 1 else x, jax.jit(model.init)(jax.random.key(0)))
  read = jax.jit(lambda params, tokens: model.apply(params, dict(tokens=tokens))['encoded'][0, 0])
  return model, params, [read(params, np.asarray([[text.eos_id, *text.encode(one)][:32]])) for one in TEXTS]


@pytest.mark.parametrize('devices', [1, 8])
def test_first_tokens_are_those_of_each_text_alone(devices):
  model, params, wanted = alone()
  mesh = mesh_lib.make_mesh({'data': -1}, devices=jax.devices()[:devices])
  vectors = embed.first_tokens(Role(model, toys.letters()), params, TEXTS, batch=2, mesh=mesh)
  assert vectors.shape == (5, 16) and vectors.dtype == np.float32
  for one, vector in zip(wanted, vectors):
    np.testing.assert_allclose(vector, one, rtol=1e-4, atol=1e-5)
  assert np.abs(vectors[0] - vectors[3]).max() > 1e-2, 'it looks at nothing'


def test_mean_hidden_has_length_one():
  text = toys.letters()
  model = MODELS['transformer'](vocab_size=258, width=16, layers=1, heads=2, mlp_width=32, max_length=64, init='fan_in')
  params = jax.jit(model.init)(jax.random.key(0))
  vectors = embed.mean_hidden(Role(model, text), params, TEXTS, batch=4)
  ids = [text.eos_id, *text.encode(TEXTS[1])]
  mean = np.asarray(jax.jit(model.apply)(params, dict(tokens=np.asarray([ids])))['hidden'][0]).mean(0)
  np.testing.assert_allclose(vectors[1], mean / np.linalg.norm(mean), rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
