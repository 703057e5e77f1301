"""Rotary positions: what they promise, and their scalings against those of transformers."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.models import rotary


def normal(seed, *shape):
  return jax.random.normal(jax.random.key(seed), shape)


def turn(at, width, scaling=None):
  config = dict(head_dim=width, rope_theta=100.0, rotary=(('interleaved', False), ('local_theta', None), ('scaling', scaling), ('share', 1.0)))
  return rotary.turns(config, jnp.array([[at]]))['global']


@pytest.mark.parametrize('interleaved', [False, True])
@pytest.mark.parametrize('width', [16, 10])
def test_scores_depend_on_distance_only(interleaved, width):
  q, k = normal(0, 1, 1, 1, 16), normal(1, 1, 1, 1, 16)

  def score(at_q, at_k):
    turned = [rotary.rotate(x, turn(at, width), interleaved=interleaved) for x, at in ((q, at_q), (k, at_k))]
    np.testing.assert_array_equal(turned[0][..., width:], q[..., width:])
    return float(jnp.sum(turned[0] * turned[1]))

  assert score(7, 4) == pytest.approx(score(23, 20), abs=1e-4)
  assert abs(score(7, 4) - score(7, 5)) > 1e-3
  assert score(0, 0) == pytest.approx(float(jnp.sum(q * k)), abs=1e-5)


def test_interleaved_pairs_are_neighbours():
  x = normal(0, 1, 2, 1, 8)
  apart = x.reshape(1, 2, 1, 4, 2).swapaxes(-1, -2).reshape(x.shape)      # (0 2 4 6 1 3 5 7)
  one = rotary.rotate(x, turn(5, 8), interleaved=True)
  two = rotary.rotate(apart, turn(5, 8))
  np.testing.assert_allclose(one.reshape(1, 2, 1, 4, 2).swapaxes(-1, -2).reshape(x.shape), two, atol=1e-6)


SCALINGS = dict(
    llama3=(dict(kind='llama3', factor=8.0, low=1.0, high=4.0, original=8192),
            dict(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192)),
    linear=(dict(kind='linear', factor=8.0), dict(factor=8.0)),
    longrope=(dict(kind='longrope', short=tuple(np.linspace(1, 2, 32)), long=(1.0,) * 32, original=4096, longest=131072,
                   attention=float(np.sqrt(1 + np.log(32) / np.log(4096)))),
              dict(short_factor=np.linspace(1, 2, 32).tolist(), long_factor=[1.0] * 32, original_max_position_embeddings=4096)))


@pytest.mark.parametrize('kind', SCALINGS)
def test_scalings_are_those_of_transformers(kind):
  """The published sizes: heads of 64, theta 500,000."""
  pytest.importorskip('torch')
  from transformers import LlamaConfig
  from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
  ours, theirs = SCALINGS[kind]
  config = LlamaConfig(hidden_size=128, num_attention_heads=2, max_position_embeddings=131072,
                       rope_parameters=dict(theirs, rope_type=kind, rope_theta=500000.0))
  rates, factor = ROPE_INIT_FUNCTIONS[kind](config, 'cpu')
  got, got_factor = rotary.rates(64, 500000.0, tuple(ours.items()))
  np.testing.assert_allclose(got, rates.numpy(), rtol=1e-6)
  assert got_factor == pytest.approx(factor, rel=1e-9)
