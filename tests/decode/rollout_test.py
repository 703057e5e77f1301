"""Rollouts: prompts stay, completions are what the model says, everything else of a row stays as it was."""
import types

import examples
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.core import mesh as mesh_lib
from distill_jax.data import feed
from distill_jax.decode import rollout, score

TEXT = types.SimpleNamespace(eos_id=1, pad_id=0, vocab_size=examples.VOCAB)
NEW = 7


@pytest.fixture(scope='module')
def student():
  made = examples.role(1, dropout=0.0)
  # livelier than the examples' own, so that texts differ and some end
  return made._replace(params=jax.tree.map(lambda x: 3 * x if x.ndim == 2 else x, made.params))


@pytest.fixture(scope='module')
def batch():
  return examples.unpacked_batch(jax.random.key(5))[1]


@pytest.fixture(scope='module')
def writing(student):
  """writing(batch, where, key, temperature) on one device, compiled once a temperature."""
  made = {}
  def run(batch, where, key=0, temperature=1.0):
    if temperature not in made:
      made[temperature] = jax.jit(lambda params, batch, where, key: rollout.write(
          student.model, params, batch, where, key, text=TEXT, max_new_tokens=NEW, temperature=temperature))
    return jax.device_get(made[temperature](student.params, batch, np.asarray(where), jax.random.key(key)))
  return run


WHERE = np.arange(examples.ROWS) % 4 != 0


def test_prompts_stay_and_completions_are_the_models_own(student, batch, writing):
  rows, logps = writing(batch, WHERE, temperature=0.0)
  def read(params, rows):
    out = student.model.apply(params, rows)
    return jnp.argmax(out['head'].logits(out['hidden']), -1), score.score(student.model, params, rows)
  best, said = map(np.asarray, jax.jit(read)(student.params, rows))
  ended = 0
  for b in range(examples.ROWS):
    first = int((batch['weights'][b] > 0).argmax())
    if not WHERE[b]:
      for name in batch:
        np.testing.assert_array_equal(rows[name][b], batch[name][b])
      assert rows['wrote'][b] == rows['ended'][b] == 0 and not logps[b].any()
      continue
    n = int(rows['weights'][b].sum())
    places = slice(first, first + n)
    assert rows['weights'][b, places].tolist() == [1.0] * n and rows['weights'][b].sum() == n
    np.testing.assert_array_equal(rows['tokens'][b, :first + 1], batch['tokens'][b, :first + 1])
    np.testing.assert_array_equal(rows['tokens'][b, first + 1:first + n], rows['targets'][b, first:first + n - 1])
    np.testing.assert_array_equal(rows['targets'][b, places], best[b, places])
    np.testing.assert_allclose(logps[b, places], said[b, places], atol=1e-5)
    assert rows['segments'][b].tolist() == [1] * (first + n) + [0] * (examples.LENGTH - first - n)
    assert rows['positions'][b, :first + n].tolist() == list(range(first + n))
    whole = rows['targets'][b, places].tolist()
    assert 1 not in whole[:-1] and (whole[-1] == 1) == bool(rows['ended'][b, 0]) and (n == NEW or whole[-1] == 1)
    ended += whole[-1] == 1
  counted = rollout.counts(rows)
  assert float(counted['on_policy'].value) == 0.75 and float(counted['finished'].total) == ended
  assert float(counted['written_tokens'].value) == rows['weights'][WHERE].sum() / 12


def test_a_completion_ends_where_the_row_does(batch, writing):
  """A prompt that leaves two places: at most three targets (the last one is no input)."""
  late = dict(batch, weights=np.zeros_like(batch['weights']), segments=np.ones_like(batch['segments']))
  late['weights'][:, examples.LENGTH - 3:] = 1.0
  late['tokens'] = np.random.default_rng(0).integers(2, examples.VOCAB, batch['tokens'].shape).astype(np.int32)
  rows, _ = writing(late, np.ones(examples.ROWS, bool))
  counts = rows['weights'].sum(1)
  assert counts.max() == 3 and ((counts == 3) | (rows['ended'][:, 0] == 1)).all() and rows['ended'].mean() < 1
  np.testing.assert_array_equal(rows['tokens'][:, :-2], late['tokens'][:, :-2])


def test_a_row_without_a_target_is_left_alone(batch, writing):
  empty = dict(batch, weights=np.where(np.arange(examples.ROWS)[:, None] == 1, 0, batch['weights']).astype(np.float32))
  rows, _ = writing(empty, np.ones(examples.ROWS, bool))
  assert rows['wrote'][:, 0].tolist() == [float(b != 1) for b in range(examples.ROWS)]
  np.testing.assert_array_equal(rows['tokens'][1], batch['tokens'][1])


def test_text_follows_key_and_row_and_not_the_place(batch, writing):
  every = np.ones(examples.ROWS, bool)
  rows, _ = writing(batch, every)
  again, _ = writing(batch, every)
  order = np.random.default_rng(0).permutation(examples.ROWS)
  moved, _ = writing(jax.tree.map(lambda x: x[order], batch), every)
  other, _ = writing(batch, every, key=1)
  np.testing.assert_array_equal(rows['targets'], again['targets'])
  np.testing.assert_array_equal(rows['targets'][order], moved['targets'])
  assert (rows['targets'] != other['targets']).any(1).mean() > 0.8


def test_rows_spread_over_devices_say_the_same(student, batch, writing):
  mesh = mesh_lib.make_mesh({'data': -1})
  spread = jax.jit(lambda params, batch, key: rollout.write(
      student.model, params, batch, jnp.ones(examples.ROWS, bool), key, text=TEXT, max_new_tokens=NEW, mesh=mesh)[0],
      out_shardings=mesh_lib.rows(mesh))
  rows = spread(jax.device_put(student.params, mesh_lib.replicated(mesh)), feed.put(dict(batch), mesh), jax.random.key(0))
  assert {len(shard.data) for shard in rows['tokens'].addressable_shards} == {examples.ROWS // 8}
  np.testing.assert_array_equal(rows['targets'], writing(batch, np.ones(examples.ROWS, bool))[0]['targets'])


def test_the_draw_of_rows_follows_key_and_row():
  ids = np.random.default_rng(0).integers(0, 2 ** 32, (4000, 2), dtype=np.uint32)
  draw = lambda share, key=0: np.asarray(rollout.drawn({'row': ids}, jax.random.key(key), share=share))
  assert draw(0.0).sum() == 0 and draw(1.0).all()
  assert abs(draw(0.3).mean() - 0.3) < 0.03 and abs((draw(0.5) == draw(0.5, 1)).mean() - 0.5) < 0.03
  np.testing.assert_array_equal(rollout.drawn({'row': ids[::-1]}, jax.random.key(0), share=0.3), draw(0.3)[::-1])


def test_rollouts_need_one_example_a_row_and_an_end():
  packed = examples.packed_batch(jax.random.key(0))[1]
  with pytest.raises(ValueError, match='gkd: rollouts continue one prompt a row, but rows here hold up to 3 packed examples: set pack=False'):
    rollout.check(packed, TEXT, method='gkd')
  with pytest.raises(ValueError, match='tokenizer has none'):
    rollout.check(examples.unpacked_batch(jax.random.key(0))[1], types.SimpleNamespace(eos_id=None), method='gkd')
