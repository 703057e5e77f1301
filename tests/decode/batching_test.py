"""Continuous batching: whatever shares the pool, a text is the one its own key writes; shared beginnings, compact caches, meshes."""
import functools

import examples
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys

from distill_jax.core import keys, mesh as mesh_lib
from distill_jax.decode import batching, sample
from distill_jax.models import cache as cache_lib
from distill_jax.models.transformer import transformer

SIZES = dict(vocab_size=258, width=16, layers=2, mlp_width=32, max_length=256)
SHAPES = {
    'llama': dict(**SIZES, heads=4, kv_heads=2, pattern=('global', 'local'), window=9),
    'gpt2': dict(**SIZES, heads=2, norm='layer', positions='learned', activation='gelu_tanh', gated=False, attention_bias=True,
                 mlp_bias=True),
}
WORDS = ['ab', 'the quick brown fox', 'x', 'a long prompt ' * 4, '3*4', 'hello', 'one two three four', 'y' * 33, 'zz', 'last of all']
NEW = 40


@functools.cache
def network(kind):
  """(model, params), with weights large enough that its texts are not all alike, and an end that comes now and then."""
  if kind == 'fading':
    model = toys.fading(size=258)
    return model, model.init(jax.random.key(3))
  model = transformer(**SHAPES[kind])
  return model, examples.drawn(model, 3, spread=0.08, norms=4.0)


def write(kind, prompts=WORDS, **settings):
  settings = {'max_new_tokens': NEW, 'batch': 4, **settings}
  model, params = network(kind)
  return sample.write(toys.role(model), params, prompts, [keys.content_id(p) for p in prompts], jax.random.key(1), **settings)


def side_by_side(kind, prompts=WORDS, **settings):
  """Token lists by prompt and sample, all written in one batch that is never refilled."""
  model, params = network(kind)
  text = toys.letters()
  width = max(len(text.encode(p)) for p in prompts)
  tokens, segments = np.zeros((len(prompts), width), np.int32), np.zeros((len(prompts), width), np.int32)
  for b, p in enumerate(prompts):
    tokens[b, width - len(text.encode(p)):], segments[b, width - len(text.encode(p)):] = text.encode(p), 1
  settings = {'max_new_tokens': NEW, 'eos_id': text.eos_id, 'pad_id': 0, **settings}
  run = jax.jit(lambda *arrays: sample.sample(model, *arrays, **settings))
  out = run(params, tokens, segments, np.stack([keys.content_id(p) for p in prompts]), jax.random.key(1))
  return [[np.asarray(out.tokens_BNT[b, n, :out.lengths_BN[b, n]]) for n in range(out.lengths_BN.shape[1])] for b in range(len(prompts))]


@functools.partial(jax.jit, static_argnums=0)
def _logits(model, params, tokens):
  out = model.apply(params, dict(tokens=tokens))
  return out['head'].logits(out['hidden'])


def distance_to_a_tie(kind, prompt, number, one, other, temperature=1.0):
  """How far the first difference of two texts is from a tie: between the number that was drawn and the nearest border that parts the two
  tokens, in cumulative probability. None: no difference."""
  at = next((t for t, (a, b) in enumerate(zip(one, other)) if a != b), None)
  if at is None:
    assert len(one) == len(other)
    return None
  model, params = network(kind)
  row = np.concatenate([toys.letters().encode(prompt), one[:at]]).astype(np.int32)
  logits = _logits(model._replace(axes=(), trainable=(), config=None), params, np.pad(row, (0, 128 - len(row)))[None])[0, len(row) - 1]
  p = np.asarray(jax.nn.softmax(logits / temperature), np.float64)
  key = jax.random.fold_in(keys.fold_ids(jax.random.key(1), keys.content_id(prompt)[None])[0], number)
  drawn = float(jax.random.uniform(jax.random.fold_in(key, at)))
  low, high = sorted((int(one[at]), int(other[at])))
  return float(np.abs(np.cumsum(p / p.sum())[low:high] - drawn).min())


@pytest.mark.parametrize('kind', ['llama', 'gpt2', 'fading'])
def test_refilled_rows_write_what_a_batch_writes(kind):
  """Every first difference stands at a near-tie. Thirty texts through four rows: rows are refilled, prompts split between fills."""
  whole = side_by_side(kind, samples=3)
  texts, stats = write(kind, samples=3)
  ties = [distance_to_a_tie(kind, p, n, text['tokens'], whole[i][n]) for i, p in enumerate(WORDS) for n, text in enumerate(texts[i])]
  found = [tie for tie in ties if tie is not None]
  print(f'{kind}: {len(found)} of {len(ties)} texts differ, each first at a distance of at most {max(found, default=0):.1e} from a tie')
  assert all(tie < 1e-4 for tie in found) and len(found) < 3
  assert stats['texts'] == 30 and len({t['text'] for several in texts for t in several}) > 20
  assert kind == 'fading' or len({len(t['tokens']) for several in texts for t in several}) > 1      # some end early


def test_the_judge_of_ties_knows_a_difference_that_is_none():
  one = side_by_side('llama', WORDS[:2])
  for i in (0, 1):
    other = one[i][0].copy()
    other[3] = (other[3] + 100) % 258
    assert distance_to_a_tie('llama', WORDS[i], 0, one[i][0], other) > 1e-4


@pytest.mark.parametrize('kind', ['llama', pytest.param('gpt2', marks=pytest.mark.slow), 'fading'])
@pytest.mark.parametrize('batch', [1, pytest.param(5, marks=pytest.mark.slow), 64])
def test_greedy_whatever_the_number_of_rows(kind, batch):
  whole = side_by_side(kind, temperature=0.0)
  texts, _ = write(kind, temperature=0.0, batch=batch)
  for [a], [b] in zip(texts, whole):
    np.testing.assert_array_equal(a['tokens'], b)


def test_short_rows_are_taken_apart_from_long_ones(monkeypatch):
  """Rows in turns of two, by length, at two widths: the same greedy texts; and the wide shape is used for the long ones alone."""
  seen = []
  plain, take = batching.shapes, batching._take
  monkeypatch.setattr(batching, 'shapes', lambda *a, **k: plain(*a, **k)._replace(taken=2))
  monkeypatch.setattr(batching, '_take', lambda *a: (seen.append(a[3]), take(*a))[1])
  texts, _ = write('llama', temperature=0.0)
  assert sorted(set(seen)) == [64, 112] and seen.count(64) > seen.count(112)
  for [a], [b] in zip(texts, side_by_side('llama', temperature=0.0)):
    np.testing.assert_array_equal(a['tokens'], b)


FEW_SHOT = 'Question: two and two? Answer: four. Question: three and one? Answer: four. '


def test_what_is_drawn_otherwise_is_kept_by_the_same_programs():
  """Only the step itself depends on temperature and length of the texts: nothing else is traced again, not even where a pool is refilled."""
  sizes = lambda: np.asarray([getattr(batching, name)._cache_size() for name in ('_make', '_empty', '_read', '_enter', '_behind', '_take', '_put')])
  mesh = mesh_lib.make_mesh({'data': 1}, devices=jax.devices()[:1])
  fresh = sizes()
  write('llama', samples=2, max_new_tokens=16, mesh=mesh)
  before = sizes()
  assert (before - fresh).tolist() == [1] * 7, 'twenty texts through four rows'
  write('llama', samples=2, max_new_tokens=14, temperature=0.5, top_k=5, mesh=mesh)
  assert (sizes() == before).all()


@pytest.mark.parametrize('kind', ['llama', pytest.param('gpt2', marks=pytest.mark.slow), 'fading'])
def test_a_beginning_that_all_prompts_share_is_read_once(kind):
  prompts = [FEW_SHOT + word for word in WORDS]
  texts, stats = write(kind, prompts, temperature=0.0)
  assert stats['shared_tokens'] == (0 if kind == 'fading' else 64)      # 76 characters, in pieces of 32
  for prompt, [a], [b] in zip(prompts, texts, side_by_side(kind, prompts, temperature=0.0)):
    np.testing.assert_array_equal(a['tokens'], b)


def test_equal_prompts_keep_a_token_of_their_own():
  texts, stats = write('llama', [FEW_SHOT[:64]] * 3, temperature=0.0)
  assert stats['shared_tokens'] == 32 and len({t['text'] for [t] in texts}) == 1


@pytest.mark.parametrize('dtype,slack', [pytest.param('bfloat16', 0.05, marks=pytest.mark.slow), ('int8', 0.1)])
def test_a_compact_cache_writes_almost_the_same(dtype, slack):
  """The same greedy first tokens, and log-probabilities near those of a float32 cache; few-shot prefixes too."""
  prompts = [FEW_SHOT + word for word in WORDS]
  texts, _ = write('llama', prompts, temperature=0.0, max_new_tokens=3, cache_dtype=dtype)
  whole, _ = write('llama', prompts, temperature=0.0, max_new_tokens=3)
  same = [(a, b) for [a], [b] in zip(texts, whole) if np.array_equal(a['tokens'], b['tokens'])]
  assert len(same) >= 8
  for a, b in same:
    assert a['logp'] == pytest.approx(b['logp'], abs=slack)
  assert any(a['logp'] != b['logp'] for a, b in same)      # or the cache was not a compact one


def test_int8_vectors():
  x = jax.random.normal(jax.random.key(0), (3, 2, 5, 8)) * jnp.asarray([1e-3, 1.0, 50.0])[:, None, None, None]
  held, scale = cache_lib.quantise(x)
  assert held.dtype == jnp.int8 and scale.shape == (3, 2, 5)
  assert np.all(np.abs(held * scale[..., None] - x) <= 0.5001 * scale[..., None])
  held, scale = cache_lib.quantise(jnp.zeros((1, 1, 1, 4)))
  assert not held.any() and not scale.any()


def test_a_cache_of_no_known_dtype():
  with pytest.raises(ValueError, match='int4.*choose one of float32'):
    write('llama', WORDS[:1], cache_dtype='int4')


def test_rows_over_a_mesh_are_refilled():
  """Eight devices, thirty texts through twenty-four rows, a stop string."""
  mesh = mesh_lib.make_mesh({'data': 4, 'fsdp': 2})
  prompts = [FEW_SHOT + word for word in WORDS]
  one, _ = write('llama', prompts, samples=3, batch=24, stop=('e',))
  eight, _ = write('llama', prompts, samples=3, batch=24, stop=('e',), mesh=mesh)
  assert sum(a['text'] != b['text'] for x, y in zip(one, eight) for a, b in zip(x, y)) <= 1


def test_a_tool_among_refilled_rows():
  """What it forces stands in the text, and a tool that says nothing changes nothing."""
  quiet, _ = write('llama', temperature=0.0, writer=lambda text: '')
  free, _ = write('llama', temperature=0.0)
  assert [t['text'] for [t] in quiet] == [t['text'] for [t] in free]
  loud, _ = write('llama', temperature=0.0, writer=lambda text: '12>>' if len(text) == 20 else '')
  assert sum(t['text'][20:24] == '12>>' for [t] in loud) == sum(len(t['text']) >= 24 for [t] in loud) > 2
