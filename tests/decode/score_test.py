"""Scores of given text."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.core.types import Head, Model
from distill_jax.decode import score
from distill_jax.losses import divergence


def table_model(size=7):
  """The next token depends on the last one alone: its logits stand in a table."""
  return Model(
      init=lambda key: {'table': jax.random.normal(key, (size, size))},
      apply=lambda params, batch, **_: {'hidden': jax.nn.one_hot(batch['tokens'], size), 'head': Head(params['table'])},
      axes=(('table', '- vocab'),), cache=lambda *_: {})


def batch_of():
  rng = np.random.default_rng(0)
  return dict(
      tokens=jnp.asarray(rng.integers(0, 7, (2, 5))), targets=jnp.asarray(rng.integers(0, 7, (2, 5))).at[0, 4].set(-99),
      segments=jnp.asarray([[1, 1, 2, 2, 0], [1, 1, 1, 1, 1]]), weights=jnp.zeros((2, 5)))


def test_score():
  model, batch = table_model(), batch_of()
  params = model.init(jax.random.key(0))
  table = jax.nn.log_softmax(params['table'])
  seen = jax.jit(lambda p, b: score.score(model, p, b))(params, batch)
  want = np.asarray(table)[np.asarray(batch['tokens']), np.asarray(batch['targets']) % 7]
  want[0, 4] = 0.0
  np.testing.assert_allclose(seen, want, rtol=1e-5)
  whole = {k: batch[k] for k in ('tokens', 'targets')}
  assert score.score(model, params, whole).shape == (2, 5)


@pytest.mark.parametrize('temperature', [1.0, 2.0])
def test_top_k(temperature):
  model, batch = table_model(), batch_of()
  params = model.init(jax.random.key(1))
  ids, logps = score.top_k(model, params, batch, k=3, temperature=temperature)
  assert ids.dtype == jnp.int32 and logps.dtype == jnp.float32 and ids.shape == logps.shape == (2, 5, 3)
  full = np.asarray(jax.nn.log_softmax(params['table'] / temperature))[np.asarray(batch['tokens'])]
  order = np.argsort(-full, axis=-1)[..., :3]
  real = np.asarray(batch['segments']) > 0
  np.testing.assert_array_equal(np.asarray(ids)[real], order[real])
  np.testing.assert_allclose(np.asarray(logps)[real], np.take_along_axis(full, order, -1)[real], rtol=1e-5)
  assert np.all(ids[0, 4] == -1) and np.all(logps[0, 4] == 0)
  # a student that is the teacher has nothing to learn from these targets
  loss = divergence.top_k_kl(params['table'][batch['tokens']], ids, logps, temperature=temperature)
  np.testing.assert_allclose(loss, 0.0, atol=1e-6)


def test_k_outside_the_vocabulary():
  model = table_model()
  with pytest.raises(ValueError, match='k=8 must lie in 1..7'):
    score.top_k(model, model.init(jax.random.key(0)), batch_of(), k=8)
