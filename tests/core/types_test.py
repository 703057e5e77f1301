"""Head: from hidden states to logits."""
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.core.types import Head, Method, State


def test_head_is_a_map_then_bias_scale_and_cap():
  rng = np.random.default_rng(0)
  hidden, weight, bias = rng.normal(size=(2, 3, 4)).astype('f'), rng.normal(size=(4, 5)).astype('f'), rng.normal(size=5).astype('f')
  plain = np.einsum('bld,dv->blv', hidden, weight)
  np.testing.assert_allclose(Head(weight).logits(jnp.asarray(hidden)), plain, atol=1e-5)
  np.testing.assert_allclose(Head(weight, bias).logits(jnp.asarray(hidden)), plain + bias[None, None], atol=1e-5)
  np.testing.assert_allclose(Head(weight, bias, 0.5).logits(jnp.asarray(hidden)), 0.5 * (plain + bias[None, None]), atol=1e-5)
  np.testing.assert_allclose(Head(weight, cap=2.0).logits(jnp.asarray(hidden)), 2 * np.tanh(plain / 2), atol=1e-5)


def test_logits_are_float32_whatever_the_hidden_states():
  hidden = jnp.ones((3, 4), jnp.bfloat16)
  assert Head(jnp.ones((4, 5))).logits(hidden).dtype == jnp.float32


def test_a_method_without_more_leaves_batch_and_memory_alone():
  method = Method(loss=None)
  state = State(0, {}, {}, {'queue': 1})
  assert method.rollout(state, {}, {'tokens': 2}, None) == ({'tokens': 2}, {'queue': 1})
  assert method.after(state, {}, {}) == {'queue': 1}
  assert method.memory({}) == {} and method.label is None and method.early


def test_a_head_of_another_width_is_refused():
  with pytest.raises(ValueError, match='width 6 do not fit a head of 4 x 9'):
    Head(jnp.zeros((4, 9))).logits(jnp.zeros((2, 6)))
