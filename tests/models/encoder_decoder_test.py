"""The encoder-decoder against transformers: T5 v1.0 and v1.1, CodeT5: logits, states, greedy text, there and back; packing; its cache."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.core import tree
from distill_jax.decode import sample
from distill_jax.models import MODELS, relative, weights

SMALL = dict(vocab_size=97, d_model=32, d_kv=12, d_ff=48, num_layers=2, num_heads=3, relative_attention_num_buckets=8,
             relative_attention_max_distance=20, decoder_start_token_id=0, initializer_factor=1.0)
GATED = dict(SMALL, feed_forward_proj='gated-gelu')
KINDS = dict(
    v1=dict(SMALL, num_decoder_layers=3), v1_1=dict(GATED, tie_word_embeddings=False), v1_1_tied=dict(GATED, tie_word_embeddings=False),
    codet5=dict(SMALL, bos_token_id=1, eos_token_id=2, d_kv=8, relative_attention_num_buckets=32, relative_attention_max_distance=128))
NEW, M = 64, 37
TINY = dict(vocab_size=61, width=16, layers=2, heads=2, mlp_width=24, buckets=8, furthest=12)


def theirs(kind):
  """A random transformers model; all weights differ, those of norms and of an untied head too."""
  torch, transformers = pytest.importorskip('torch'), pytest.importorskip('transformers')
  torch.manual_seed(3)
  model = transformers.T5ForConditionalGeneration(transformers.T5Config(**KINDS[kind])).eval()
  if kind == 'v1_1':
    model.lm_head.weight = torch.nn.Parameter(0.1 * torch.randn(97, 32))
  with torch.no_grad():
    for name, parameter in model.named_parameters():
      if parameter.ndim == 1 or 'relative' in name:
        parameter.add_(torch.randn_like(parameter) * (0.1 if parameter.ndim == 1 else 3.0))
      elif 'DenseReluDense' in name or 'SelfAttention.q' in name:
        parameter.mul_(2.5 if model.config.is_gated_act else 5.0)      # or the text would be one token again and again
      elif kind == 'v1_1_tied' and name == 'shared.weight':
        parameter.mul_(0.2)
  return model


def sources(seed=0):
  """(source, its segments) [3, M], ragged, padded at the right."""
  lengths = np.asarray([M, 5, 20])
  segments = (np.arange(M)[None] < lengths[:, None]).astype(np.int32)
  return np.where(segments > 0, np.random.default_rng(seed).integers(3, 97, (3, M)), 0).astype(np.int32), segments


@pytest.mark.parametrize('kind', [pytest.param(kind, marks=[pytest.mark.slow] * (kind == 'v1_1_tied')) for kind in KINDS])
def test_a_model_of_transformers_is_read_and_written_back(kind, tmp_path):
  import torch
  model = theirs(kind)
  model.save_pretrained(tmp_path / 'theirs')
  name, config, params = weights.read(tmp_path / 'theirs')
  ours = MODELS[name](**config)
  assert (name, ours.start_id, config['tied'], config['scaled']) == ('encoder_decoder', 0, kind != 'v1_1', kind in ('v1', 'codet5'))
  source, segments = sources()
  tokens = np.random.default_rng(1).integers(0, 97, (3, 30)).astype(np.int32)
  batch = dict(source=source, source_segments=segments, tokens=tokens)

  @jax.jit
  def run(params, batch):
    out = ours.apply(params, batch, want=('layers', 'source_layers'))
    return {**out, 'logits': out['head'].logits(out['hidden'])}
  out = run(params, batch)

  def told_by(model):
    with torch.no_grad():
      return model(input_ids=torch.tensor(source), attention_mask=torch.tensor(segments), decoder_input_ids=torch.tensor(tokens), output_hidden_states=True,
                   use_cache=False)
  told, real = told_by(model), segments > 0
  np.testing.assert_allclose(out['logits'], told.logits.numpy(), atol=1e-4)
  np.testing.assert_allclose(np.asarray(out['encoded'])[real], told.encoder_last_hidden_state.numpy()[real], atol=1e-4)
  for seen, hidden in zip(out['layers'][:-1], told.decoder_hidden_states[1:-1], strict=True):
    np.testing.assert_allclose(seen, hidden.numpy(), rtol=1e-5, atol=1e-4)
  for seen, hidden in zip(out['source_layers'][:-1], told.encoder_hidden_states[1:-1], strict=True):
    np.testing.assert_allclose(np.asarray(seen)[real], hidden.numpy()[real], rtol=1e-5, atol=1e-4)

  text = model.generate(torch.tensor(source), attention_mask=torch.tensor(segments), max_new_tokens=NEW, do_sample=False, eos_token_id=None,
                        pad_token_id=0, use_cache=kind != 'v1')[:, 1:].numpy()      # its cache has no room for a decoder deeper than the encoder
  lengths = segments.sum(1)
  left = [np.stack([np.roll(row, M - n) for row, n in zip(x, lengths)]) for x in (source, segments)]      # prompts stand at the right
  write = jax.jit(lambda params, prompts, segments: sample.sample(
      ours, params, prompts, segments, np.zeros((3, 2), np.uint32), jax.random.key(0), max_new_tokens=NEW, temperature=0.0, eos_id=-1, pad_id=0))
  np.testing.assert_array_equal(write(params, *left).tokens_BNT[:, 0], text)
  assert all(len(set(row)) > 5 for row in text.tolist())

  weights.write_hf(tmp_path / 'back', name, config, params, tokens=dict(eos_token_id=1, pad_token_id=0, bos_token_id=None))
  back = type(model).from_pretrained(tmp_path / 'back').eval()
  for key, value in model.state_dict().items():
    assert torch.equal(value, back.state_dict()[key]), key
  assert torch.equal(told_by(back).logits, told.logits)
  assert back.generation_config.decoder_start_token_id == 0 and back.config.eos_token_id == 1
  assert weights.read_config(tmp_path / 'back') == (name, config)


@pytest.mark.parametrize('buckets, furthest', [(32, 128), (8, 20), (16, 256), (4, 3)])
@pytest.mark.parametrize('both', [True, False])
def test_buckets_are_those_of_transformers(buckets, furthest, both):
  pytest.importorskip('transformers')
  import torch
  from transformers.models.t5.modeling_t5 import T5Attention
  back = np.arange(-700, 700).reshape(7, 200)
  expect = T5Attention._relative_position_bucket(torch.tensor(-back), bidirectional=both, num_buckets=buckets, max_distance=furthest).numpy()
  table = jnp.arange(buckets, dtype=jnp.float32)[:, None]
  np.testing.assert_array_equal(relative.bias(table, jnp.asarray(back), furthest=furthest, both=both)[0], expect)


def made(**changes):
  """(model, params) whose biases matter."""
  model = MODELS['encoder_decoder'](**{**TINY, **changes})
  params = tree.flatten(model.init(jax.random.key(0)))
  return model, tree.unflatten({path: 4 * x if path.endswith('coder/bias') else x for path, x in params.items()})


def logits_of(model):
  def run(params, batch, **more):
    out = model.apply(params, batch, **more)
    return out['head'].logits(out['hidden']), out.get('cache')
  return run


def test_neighbours_of_a_packed_row_do_not_see_each_other():
  model, params = made()
  rng = np.random.default_rng(0)
  texts = [(rng.integers(0, 61, n), rng.integers(0, 61, m)) for n, m in ((5, 2), (3, 8), (4, 3))]
  padded = lambda parts, size: np.concatenate([*parts, np.zeros(size - sum(map(len, parts)), np.int64)])[None].astype(np.int32)
  packed = dict(
      tokens=padded([t for t, _ in texts], 15), segments=padded([np.full(len(t), i + 1) for i, (t, _) in enumerate(texts)], 15),
      positions=padded([np.arange(len(t)) for t, _ in texts], 15),
      source=padded([s for _, s in texts], 16), source_segments=padded([np.full(len(s), i + 1) for i, (_, s) in enumerate(texts)], 16))
  run = jax.jit(logits_of(model))
  together, start = run(params, packed)[0], 0
  for tokens, source in texts:
    alone = run(params, dict(tokens=tokens[None], source=source[None]))[0]
    np.testing.assert_allclose(together[0, start:start + len(tokens)], alone[0], atol=2e-5)
    start += len(tokens)
  dirty = {**packed, **{name: np.where(packed[seg] > 0, packed[name], 2 ** 31 - 1) for name, seg in (('tokens', 'segments'), ('source', 'source_segments'))}}
  np.testing.assert_array_equal(run(params, dirty)[0], together)


@pytest.mark.parametrize('dtype, bound', [('float32', 2e-5), ('int8', 0.1)])
def test_a_cache_gives_what_whole_rows_give(dtype, bound):
  """Token by token, over params as they are trained and as they are made ready; slots of the source stay empty at the end."""
  model, params = made(decoder_layers=3)
  source, segments = (x[:, :9] for x in sources())
  source = source % 61
  tokens = np.random.default_rng(1).integers(0, 61, (3, 6)).astype(np.int32)
  whole = jax.jit(logits_of(model))(params, dict(source=source, source_segments=segments, tokens=tokens))[0]
  cache = model.cache(3, 8, dtype, source=12)
  cache = jax.jit(lambda params, batch, cache: model.apply(params, batch, cache=cache)['cache'])(params, dict(source=source, source_segments=segments), cache)
  assert cache['source_segments'].shape == (3, 12) and len(cache['k']) == 3
  step = jax.jit(lambda params, batch, cache: logits_of(model)(params, batch, cache=cache))
  for number in range(6):
    said, cache = step(model.ready(params) if number % 2 else params, dict(tokens=tokens[:, number:number + 1]), cache)
    np.testing.assert_allclose(said[:, 0], whole[:, number], atol=bound)


@pytest.mark.slow
def test_remat_and_ready_change_nothing_and_dropout_follows_rows():
  source, segments = (x[:, :9] for x in sources())
  batch = dict(source=source % 61, source_segments=segments, tokens=np.arange(12, dtype=np.int32).reshape(3, 4))
  keys = jax.random.split(jax.random.key(1), 3)
  grads = []
  for remat in ('none', 'full'):
    model, params = made(dropout=0.3, remat=remat)
    loss = lambda params, batch, keys, model=model: jnp.sum(jnp.square(logits_of(model)(params, batch, key_B=keys)[0]))
    grads.append(jax.jit(jax.grad(loss))(params, batch, keys))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * max(1, np.abs(a).max())), *grads)
  assert all(np.abs(x).max() > 0 for x in jax.tree.leaves(grads[0]))
  run = jax.jit(lambda params, batch, keys: logits_of(model)(params, batch, key_B=keys)[0])
  straight = run(params, batch, keys)
  np.testing.assert_allclose(run(params, {k: v[::-1] for k, v in batch.items()}, keys[::-1])[::-1], straight, atol=1e-5)
  still = jax.jit(lambda params, batch: logits_of(model)(params, batch)[0])
  assert np.abs(straight - still(params, batch)).max() > 1e-2
  np.testing.assert_allclose(still(model.ready(params), batch), still(params, batch), atol=1e-5)


def test_fresh_logits_are_of_a_size_to_learn_from():
  for changes in (dict(), dict(tied=False, gated=True, activation='gelu_tanh'), dict(scaled=False)):
    model = MODELS['encoder_decoder'](**{**TINY, 'width': 64, 'vocab_size': 300, **changes})
    tokens = np.random.default_rng(0).integers(0, 300, (4, 20)).astype(np.int32)
    logits = jax.jit(logits_of(model))(model.init(jax.random.key(0)), dict(source=tokens, tokens=tokens))[0]
    assert 0.3 < float(jnp.std(logits)) < 3


@pytest.mark.parametrize('changes, message', [
    (dict(activation='swish'), "activation='swish'; choose one of relu"), (dict(buckets=7), 'buckets=7 must be even'),
    (dict(furthest=4), 'furthest=4'), (dict(start_id=61), 'start_id=61 is no id'), (dict(heads=0), 'heads=0'), (dict(dropout=-0.1), 'dropout'),
])
def test_keywords_that_contradict_each_other(changes, message):
  with pytest.raises(ValueError, match=message):
    MODELS['encoder_decoder'](**{**TINY, **changes})


def test_a_batch_without_a_source_is_refused():
  model, params = made()
  with pytest.raises(ValueError, match="the batch has no 'source'"):
    model.apply(params, dict(tokens=np.zeros((1, 2), np.int32)))


@pytest.mark.parametrize('changes, message', [(dict(feed_forward_proj='gated-tanh'), "feed_forward_proj='gated-tanh'; known are relu")])
def test_a_directory_that_cannot_be_read(changes, message, tmp_path):
  import json
  (tmp_path / 'config.json').write_text(json.dumps(dict(architectures=['T5ForConditionalGeneration'], **changes)))
  with pytest.raises(ValueError, match=message):
    weights.read_config(tmp_path)
  model, params = made(activation='silu')
  with pytest.raises(ValueError, match="T5 has no activation='silu'"):
    weights.write_hf(tmp_path / 'out', model.name, model.config, params)
