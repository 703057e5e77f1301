"""Sampling on the device: caches, keys, ends, distributions, meshes."""
import functools

import examples
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys

from distill_jax.core import mesh as mesh_lib
from distill_jax.decode import sample, score
from distill_jax.models.transformer import transformer

LLAMA = dict(vocab_size=40, width=16, layers=3, heads=4, kv_heads=2, mlp_width=32, max_length=64, pattern=('global', 'local'), window=6)
GPT2 = dict(vocab_size=40, width=16, layers=2, heads=2, mlp_width=32, max_length=64, norm='layer', positions='learned',
            activation='gelu_tanh', gated=False, attention_bias=True, mlp_bias=True)


@functools.cache
def network(kind, dtype='float32'):
  """(model, params), with weights large enough that its texts are not all alike."""
  model = toys.fading() if kind == 'fading' else transformer(**{'llama': LLAMA, 'gpt2': GPT2}[kind], dtype=dtype)
  return model, jax.jit(model.init)(jax.random.key(3)) if kind == 'fading' else examples.drawn(model, 3, spread=0.08, norms=4.0)


def prompts_of(lengths, width, seed=0, size=40):
  rng = np.random.default_rng(seed)
  tokens, segments = np.full((len(lengths), width), 7, np.int32), np.zeros((len(lengths), width), np.int32)
  for b, n in enumerate(lengths):
    tokens[b, width - n:], segments[b, width - n:] = rng.integers(2, size, n), 1
  ids = rng.integers(0, 2**32, (len(lengths), 2), np.uint64).astype(np.uint32)
  return tokens, segments, ids


@functools.partial(jax.jit, static_argnums=0, static_argnames=('settings', 'mesh'))
def run(model, params, tokens, segments, ids, key, *, settings, mesh=None):
  return sample.sample(model, params, tokens, segments, ids, key, **{'eos_id': 1, 'pad_id': 0, **dict(settings)}, mesh=mesh)


def texts(kind, prompts, seed=0, dtype='float32', mesh=None, **settings):
  model, params = network(kind, dtype)
  model = model._replace(axes=(), config=None)
  return jax.tree.map(np.asarray, run(model, params, *prompts, jax.random.key(seed), settings=tuple(sorted(settings.items())), mesh=mesh))


@functools.partial(jax.jit, static_argnums=0)
def _read_whole(model, params, row):
  out = model.apply(params, row)
  return out['head'].logits(out['hidden'])[0], score.score(model, params, row)[0]


def read_whole(kind, tokens, segments, sampled, b, n, dtype='float32'):
  """(logits [T, V], log-probabilities [T]) of a continuation, read with its prompt as one row without a cache; zeros stand behind it, which it does not see."""
  whole = np.concatenate([tokens[b][segments[b] > 0], sampled.tokens_BNT[b, n, :sampled.lengths_BN[b, n]]])
  here = slice(len(whole) - 1 - int(sampled.lengths_BN[b, n]), len(whole) - 1)
  pad = lambda x: jnp.asarray(np.pad(x, (0, 24 - len(x)))[None])
  model, params = network(kind, dtype)
  return tuple(np.asarray(x)[here] for x in _read_whole(model._replace(axes=(), config=None), params, dict(tokens=pad(whole[:-1]), targets=pad(whole[1:]))))


@pytest.mark.parametrize('kind', ['llama', 'gpt2', 'fading'])
def test_cached_greedy_is_the_argmax_of_a_full_pass(kind):
  """Prompts of different lengths in one batch, and the log-probabilities are those of `score`."""
  tokens, segments, ids = prompts_of([1, 3, 9, 12], 12)
  out = texts(kind, (tokens, segments, ids), max_new_tokens=10, temperature=0.0, eos_id=-1)
  assert np.all(out.lengths_BN == 10)
  for b in range(4):
    logits, logps = read_whole(kind, tokens, segments, out, b, 0)
    np.testing.assert_array_equal(logits.argmax(-1), out.tokens_BNT[b, 0])
    np.testing.assert_allclose(logps, out.logps_BNT[b, 0], rtol=1e-4, atol=1e-5)


def test_log_probabilities_of_cut_and_tempered_samples_are_the_models_own():
  tokens, segments, ids = prompts_of([2, 5], 6)
  out = texts('llama', (tokens, segments, ids), max_new_tokens=8, samples=2, temperature=0.6, top_k=5, top_p=0.9)
  for b, n in ((0, 0), (1, 1)):
    length = out.lengths_BN[b, n]
    np.testing.assert_allclose(read_whole('llama', tokens, segments, out, b, n)[1], out.logps_BNT[b, n, :length], rtol=1e-4, atol=1e-5)
    assert np.all(out.logps_BNT[b, n, length:] == 0)


@pytest.mark.slow
def test_bfloat16():
  tokens, segments, ids = prompts_of([4, 9], 9)
  out = texts('llama', (tokens, segments, ids), dtype='bfloat16', max_new_tokens=8, temperature=0.0, eos_id=-1)
  assert out.logps_BNT.dtype == np.float32
  for b in range(2):
    np.testing.assert_allclose(read_whole('llama', tokens, segments, out, b, 0, 'bfloat16')[1], out.logps_BNT[b, 0], atol=0.15)


def test_neighbours_and_order_do_not_matter():
  """Same compiled shape, same bits: other rows around it, another place in the batch, dummy rows instead of neighbours."""
  tokens, segments, ids = prompts_of([2, 5, 6, 3], 6)
  settings = dict(max_new_tokens=12, samples=2)
  out = texts('llama', (tokens, segments, ids), **settings)
  order = np.array([2, 0, 3, 1])
  turned = texts('llama', (tokens[order], segments[order], ids[order]), **settings)
  other = prompts_of([6, 1, 4, 2], 6, seed=9)
  mixed = [np.concatenate([a[:1], b[:3]]) for a, b in zip((tokens, segments, ids), other)]
  alone = [x.copy() for x in (tokens, segments, ids)]
  for x in alone:
    x[1:] = 0
  for a, b, c, d in zip(out, turned, texts('llama', mixed, **settings), texts('llama', alone, **settings)):
    np.testing.assert_array_equal(a[order], b)
    np.testing.assert_array_equal(a[0], c[0])
    np.testing.assert_array_equal(a[0], d[0])
  assert len({row.tobytes() for row in out.tokens_BNT.reshape(8, -1)}) == 8


def test_at_another_shape_texts_part_at_near_ties_only():
  tokens, segments, ids = prompts_of([2, 5, 6, 3, 4, 1], 6)
  whole = texts('llama', (tokens, segments, ids), max_new_tokens=16, temperature=0.0, eos_id=-1)
  part = texts('llama', (tokens[:1], segments[:1], ids[:1]), max_new_tokens=16, temperature=0.0, eos_id=-1)
  a, b = whole.tokens_BNT[0, 0], part.tokens_BNT[0, 0]
  if parted := np.flatnonzero(a != b).tolist():
    logits = np.sort(read_whole('llama', tokens, segments, whole, 0, 0)[0][parted[0]])
    assert logits[-1] - logits[-2] < 1e-4
  np.testing.assert_allclose(whole.logps_BNT[0, 0, :(parted or [16])[0]], part.logps_BNT[0, 0, :(parted or [16])[0]], atol=1e-4)


def test_a_row_of_padding_writes_nothing():
  tokens, segments, ids = prompts_of([2, 0, 3], 4)
  out = texts('llama', (tokens, segments, ids), max_new_tokens=6)
  assert out.lengths_BN[1, 0] == 0 and np.all(out.tokens_BNT[1] == 0) and np.all(out.logps_BNT[1] == 0)
  assert np.all(np.isfinite(out.logps_BNT)) and np.all(out.lengths_BN[[0, 2]] > 0)


def test_samples_by_number():
  """Sample i of an id is the same text whether 2 or 4 are asked for (the rows being as many), and all differ."""
  tokens, segments, ids = prompts_of([3, 4, 5, 6], 6)
  four = texts('fading', (tokens[:2], segments[:2], ids[:2]), max_new_tokens=12, samples=4)
  two = texts('fading', (tokens, segments, ids), max_new_tokens=12, samples=2)
  np.testing.assert_array_equal(four.tokens_BNT[:, :2], two.tokens_BNT[:2])
  assert len({row.tobytes() for row in four.tokens_BNT.reshape(8, -1)}) == 8


def test_the_key_is_of_the_id_and_the_run():
  tokens, segments, ids = prompts_of([3, 3], 3)
  tokens[1] = tokens[0]
  settings = dict(max_new_tokens=12, eos_id=-1)
  out = texts('fading', (tokens, segments, ids), **settings)
  assert np.any(out.tokens_BNT[0] != out.tokens_BNT[1])
  same = ids.copy()
  same[1] = ids[0]
  again = texts('fading', (tokens, segments, same), **settings)
  np.testing.assert_array_equal(again.tokens_BNT[0], again.tokens_BNT[1])
  np.testing.assert_array_equal(again.tokens_BNT[0], out.tokens_BNT[0])
  assert np.any(texts('fading', (tokens, segments, ids), seed=1, **settings).tokens_BNT[0] != out.tokens_BNT[0])
  for half in (0, 1):
    near = ids.copy()
    near[0, half] ^= 1
    assert np.any(texts('fading', (tokens, segments, near), **settings).tokens_BNT[0] != out.tokens_BNT[0])


def test_greedy_uses_no_key():
  prompts = prompts_of([3, 4], 4)
  a, b = (texts('fading', prompts, seed=seed, max_new_tokens=6, temperature=0.0, samples=2) for seed in (0, 1))
  np.testing.assert_array_equal(a.tokens_BNT, b.tokens_BNT)
  np.testing.assert_array_equal(a.tokens_BNT[:, 0], a.tokens_BNT[:, 1])


def test_eos_ends_a_text_and_counts():
  """a -> b -> c -> end; x follows itself for ever."""
  text = toys.letters()
  model, params = toys.chain({'a': 'b', 'b': 'c', 'c': ''})
  a, b, c, x = (text.encode(s)[0] for s in 'abcx')
  prompts = np.array([[0, a], [x, c], [a, x], [0, b]], np.int32)
  segments = np.array([[0, 1], [1, 1], [1, 1], [0, 1]], np.int32)
  out = run(model._replace(axes=()), params, prompts, segments, np.zeros((4, 2), np.uint32), jax.random.key(0),
            settings=(('eos_id', text.eos_id), ('max_new_tokens', 5), ('pad_id', 9)))
  want = [[b, c, 1, 9, 9], [1, 9, 9, 9, 9], [x] * 5, [c, 1, 9, 9, 9]]
  assert out.tokens_BNT[:, 0].tolist() == want and out.lengths_BN[:, 0].tolist() == [3, 1, 5, 2]


@pytest.mark.parametrize('settings', [dict(), dict(temperature=0.5), dict(top_k=4), dict(top_p=0.6, temperature=1.5)])
def test_statistics(settings):
  """Chi-square of 4,000 first and second tokens against the distribution itself, fixed seed; 99.99 % bound."""
  size, count = 8, 4000
  model = toys.random_chain(size)._replace(axes=())
  params = model.init(jax.random.key(5))
  prompts = np.full((count // 4, 1), 3, np.int32)
  ids = np.stack([np.arange(count // 4), np.zeros(count // 4)], 1).astype(np.uint32)
  settings = {'max_new_tokens': 2, 'samples': 4, 'eos_id': -1, 'temperature': 1.0, **settings}
  out = np.asarray(run(model, params, prompts, np.ones_like(prompts), ids, jax.random.key(6), settings=tuple(settings.items())).tokens_BNT)
  first, second = out.reshape(-1, 2).T

  def expected(last):
    p = np.asarray(jax.nn.softmax(params['table'][last] / settings['temperature']), np.float64)
    if top_k := settings.get('top_k'):
      p = np.where(p >= np.sort(p)[-top_k], p, 0)
    p = np.where([p[p > x].sum() < settings.get('top_p', 1.0) * p.sum() for x in p], p, 0)
    return p / p.sum()

  def check(tokens, p):
    seen = np.bincount(tokens, minlength=size)
    assert np.all(seen[p == 0] == 0)
    chi = ((seen - len(tokens) * p) ** 2 / np.maximum(len(tokens) * p, 1e-9))[p > 0].sum()
    assert chi < 31.0, (seen, len(tokens) * p)      # 99.99 % point of chi-square with 7 degrees of freedom is 29.9

  check(first, expected(3))
  most = np.bincount(first).argmax()
  check(second[first == most], expected(most))


def test_ids_the_tokenizer_lacks_are_never_drawn():
  model = toys.random_chain(8)._replace(axes=())
  params = {'table': jnp.zeros((8, 8)).at[:, 6:].set(20.0)}
  prompts = np.full((64, 1), 3, np.int32)
  for temperature in (0.0, 1.0):
    out = run(model, params, prompts, np.ones_like(prompts), np.arange(128).reshape(64, 2).astype(np.uint32), jax.random.key(0),
              settings=(('allowed', 6), ('eos_id', -1), ('max_new_tokens', 4), ('temperature', temperature)))
    assert np.all(out.tokens_BNT < 6)
    np.testing.assert_allclose(out.logps_BNT, -20.0 - np.log(2.0), rtol=1e-3)      # of the model's own distribution, as it is


@pytest.mark.parametrize('kind', ['fading', 'llama'])
def test_eight_devices_write_what_one_writes(kind):
  prompts = prompts_of([2, 5, 6, 3, 1, 4, 6, 2], 6)
  mesh = mesh_lib.make_mesh({'data': 4, 'fsdp': 2})
  settings = dict(max_new_tokens=12, samples=2)
  one = texts(kind, prompts, **settings)
  placed = jax.device_put(prompts, mesh_lib.rows(mesh))
  model, params = network(kind)
  arguments = (model._replace(axes=(), config=None), jax.device_put(params, mesh_lib.replicated(mesh)), *placed,
               jax.device_put(jax.random.key(0), mesh_lib.replicated(mesh)))
  eight = run(*arguments, settings=tuple(sorted(settings.items())), mesh=mesh)
  assert len(eight.tokens_BNT.sharding.device_set) == 8
  np.testing.assert_array_equal(one.tokens_BNT, eight.tokens_BNT)
  np.testing.assert_allclose(one.logps_BNT, eight.logps_BNT, rtol=1e-4, atol=1e-5)


def test_no_row_of_a_cache_is_lost_between_prompts_and_samples():
  """Rows are found by the shape of the cache, wherever its row axis stands."""
  tokens, segments, ids = prompts_of([3, 6, 2], 6)
  out = texts('llama', (tokens, segments, ids), max_new_tokens=5, samples=3, temperature=0.0, eos_id=-1)
  single = texts('llama', (tokens, segments, ids), max_new_tokens=5, temperature=0.0, eos_id=-1)
  np.testing.assert_array_equal(out.tokens_BNT, np.repeat(single.tokens_BNT, 3, axis=1))


@pytest.mark.parametrize('wrong', [
    dict(temperature=-1.0), dict(top_p=0.0), dict(top_p=1.1), dict(top_k=-1), dict(samples=0), dict(max_new_tokens=0)])
def test_settings_that_mean_nothing(wrong):
  prompts = prompts_of([2], 2)
  with pytest.raises(ValueError, match=next(iter(wrong))):
    texts('fading', prompts, **{'max_new_tokens': 3, **wrong})
