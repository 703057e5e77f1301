"""Retrieve: the loss of the paper on the vectors of two encoders, in pieces and on many devices that of the whole row, draws that follow ids."""
import functools

import examples
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import assert_near, Outcome

from distill_jax.core import mesh as mesh_lib
from distill_jax.core.types import Role
from distill_jax.data import feed
from distill_jax.losses import contrast
from distill_jax.methods.retrieve import retrieve
from distill_jax.train import step as step_lib


def roles(dropout=0.0):
  return {name: examples.role(seed, 'bert', dropout=dropout) for seed, name in enumerate(('student', 'prompt'))}


def params(given):
  return {name: role.params for name, role in given.items()}


def row(members=16, *, absent=True):
  rng = np.random.default_rng(0)
  one = examples.grouped_batch(jax.random.key(9), rows=1, members=members)
  weights = one['weights'] if absent else np.ones((1, members), np.float32)
  lengths = rng.integers(2, 8, (1, members, 2, 3))
  return {**one, 'weights': weights, 'examples': rng.integers(0, 2 ** 32, (1, members, 2), dtype=np.uint32),
          'contexts': rng.integers(0, 32, (1, members, 2, 3, 7)).astype(np.int32), 'contexts_segments': (np.arange(7) < lengths[..., None]).astype(np.int32)}


@functools.partial(jax.jit, static_argnums=0)
def encoded(apply, params, tokens):
  return apply(params, dict(tokens=tokens))['encoded'][0, 0]


def alone(role, tokens, segments):
  """The vector of one text by itself."""
  ids = np.asarray(tokens)[np.asarray(segments) > 0]
  return np.asarray(encoded(role.model.apply, role.params, ids[None]), np.float64)


def test_the_loss_is_that_of_the_paper():
  """Against a loop over texts: the first positive and the first negative of every member, members of weight 0 left out."""
  given, batch = roles(), row(6)
  term = retrieve(given).loss(params(given), batch, None)[0]['contrast']
  there = [g for g in range(6) if batch['weights'][0, g] > 0]
  assert 1 < len(there) < 6
  asked = {g: alone(given['student'], batch['tokens'][0, g], batch['segments'][0, g]) for g in there}
  told = {(g, kind): alone(given['prompt'], batch['contexts'][0, g, kind, 0], batch['contexts_segments'][0, g, kind, 0]) for g in there for kind in (0, 1)}
  total = 0.0
  for g in there:
    scores = {key: asked[g] @ vector for key, vector in told.items()}
    total += batch['weights'][0, g] * (np.log(sum(np.exp(s) for s in scores.values())) - scores[g, 0])
  assert float(term.total) == pytest.approx(total, rel=1e-4)
  assert float(term.weight) == batch['weights'].sum()


def stepped(given, batch, *, devices=1, chunk=None, spread=False):
  mesh = mesh_lib.make_mesh(devices=jax.devices()[:devices])
  optimizers = {name: examples.recorder() for name in given}
  made, bare = retrieve(given, chunk=chunk), {name: role._replace(params=None) for name, role in given.items()}
  state = jax.device_put(step_lib.init_state(made, given, params(given), optimizers), mesh_lib.replicated(mesh))
  placed = feed.put_groups(batch, mesh) if spread else feed.put(batch, mesh)
  state, means = jax.jit(step_lib.make_step(made, bare, optimizers, mesh=mesh))(state, {}, placed, jax.random.key(7))
  return Outcome(*jax.device_get((state.opt, state.params, means, state.memory)))


@pytest.mark.slow
def test_pieces_and_devices_change_nothing():
  """One row of 16 members with dropout: at once on one device, in pieces, and over eight devices along its members, in pieces too."""
  given, batch = roles(dropout=0.1), row(16)
  whole = stepped(given, batch)
  for more in (dict(chunk=4), dict(devices=8, spread=True), dict(devices=8, spread=True, chunk=8)):
    assert_near(whole, stepped(given, batch, **more), 2e-5)
  with pytest.raises(ValueError, match='chunk=5 does not divide the 16 members'):
    stepped(given, batch, chunk=5)


def vectors_of_first_byte(width=32):
  """An encoder whose vector of a text says which its first token is."""
  return examples.model('bert')._replace(apply=lambda params, rows, key_B=None: {'encoded': jax.nn.one_hot(rows['tokens'], width) + 0.0 * params['bias']})


@pytest.mark.parametrize('positive', ['sampled', 'first'])
def test_draws_follow_step_and_id(positive, monkeypatch):
  """Which demonstrations are contrasted depends on the key of the step and the id of the member, not on its place; the negative is always drawn."""
  seen = []
  monkeypatch.setattr(contrast, 'in_batch', lambda asked, told, own, there: (seen.append(np.asarray(told.argmax(-1))), (jnp.zeros(there[:, ::2].shape),) * 2)[1])
  model, G, K = vectors_of_first_byte(), 40, 3
  both = {name: Role(model, None, {'bias': jnp.zeros(())}) for name in ('student', 'prompt')}
  batch = row(G, absent=False)
  batch['contexts'][:] = np.arange(2 * K).reshape(1, 1, 2, K, 1)      # text k of kind c is named K c + k
  method = retrieve(both, positive=positive)
  draw = lambda batch, step: (method.loss(params(both), batch, jax.random.key(step)), seen[-1].reshape(G, 2))[1]
  one, again, later = draw(batch, 0), draw(batch, 0), draw(batch, 1)
  assert (one == again).all() and (one != later).any()
  assert set(one[:, 0]) == ({0, 1, 2} if positive == 'sampled' else {0}) and set(one[:, 1]) == {3, 4, 5}
  order = np.random.default_rng(0).permutation(G)
  moved = {name: x if name == 'row' else x[:, order] for name, x in batch.items()}
  assert (draw(moved, 0) == one[order]).all()


def test_settings():
  with pytest.raises(ValueError, match="positive='best', one of sampled, first"):
    retrieve(roles(), positive='best')
  with pytest.raises(ValueError, match='chunk=0 must be at least 1'):
    retrieve(roles(), chunk=0)
