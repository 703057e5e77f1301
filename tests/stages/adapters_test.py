"""Adapters on disk: a role's directory gives them back, and `peft` computes what we compute."""
import jax
import numpy as np
import pytest

from distill_jax.compress import lora as lora_lib
from distill_jax.core import mesh as mesh_lib, tree
from distill_jax.models import MODELS, weights
from distill_jax.stages import adapters, proof, roles

GPT2 = dict(norm='layer', positions='learned', activation='gelu_tanh', gated=False, attention_bias=True, mlp_bias=True)
QWEN2 = dict(kv_heads=1, attention_bias='qkv', tied=False)
LORA = dict(rank=2, alpha=6, targets=['attention/[qv]', 'mlp/down'])


def noisy(role, scale=0.3):
  """The role with adapters that say something."""
  flat = tree.flatten(role.params)
  own = [path for path in flat if 'lora_' in path]
  for path, key in zip(own, jax.random.split(jax.random.key(7), len(own))):
    flat[path] = scale * jax.random.normal(key, flat[path].shape)
  return role._replace(params=tree.unflatten(flat))


def test_a_role_learns_by_its_adapters_and_reads_them_back(small, tmp_path):
  plain, role = roles.load_role(small.student), roles.load_role({**small.student, 'lora': LORA})
  own, base = lora_lib.split(role.params)
  jax.tree.map(np.testing.assert_array_equal, base, plain.params)
  assert role.fingerprint != plain.fingerprint and role.source == small.student['load']
  assert role.fingerprint != roles.load_role({**small.student, 'lora': {**LORA, 'alpha': 7}}).fingerprint
  role = noisy(role)
  roles.save_role(tmp_path / 'saved', role, role.params)
  again = roles.load_role(dict(load=str(tmp_path / 'saved')))
  jax.tree.map(np.testing.assert_array_equal, role.params, again.params)
  assert again.model is role.model and again.model.trainable == lora_lib.TRAINABLE and again.source == role.source
  narrow = roles.load_role(dict(load=str(tmp_path / 'saved'), params_dtype='bfloat16'))
  kinds = {path.rpartition('/')[2]: x.dtype.name for path, x in tree.flatten(narrow.params).items()}
  assert kinds['kernel'] == 'bfloat16' and kinds['lora_a'] == kinds['lora_b'] == 'float32'
  mesh = mesh_lib.make_mesh(dict(fsdp=2, tensor=2), devices=jax.devices()[:4])
  spread = roles.load_role(dict(load=str(tmp_path / 'saved')), mesh=mesh)
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(spread.params), jax.device_get(role.params))
  assert spread.params['layers']['0']['attention']['q']['lora_b'].addressable_shards[0].data.shape == (2, 2, 8)
  with pytest.raises(ValueError, match=r'has an adapter already \(rank=2, alpha=6.0, .*leave lora= out to go on'):
    roles.load_role(dict(load=str(tmp_path / 'saved'), lora=LORA))
  (tmp_path / 'saved' / adapters.HELD).write_bytes(b'xx')
  with pytest.raises(ValueError, match='adapter.safetensors: missing, cut short or damaged'):
    roles.load_role(dict(load=str(tmp_path / 'saved')))


def test_a_fresh_model_may_have_adapters(small):
  fresh = dict(model=dict(width=8, layers=1, heads=2, mlp_width=8, max_length=32), tokenizer=small.student['load'])
  plain, role = roles.load_role(fresh), roles.load_role({**fresh, 'lora': dict(rank=2)})
  jax.tree.map(np.testing.assert_array_equal, lora_lib.split(role.params)[1], plain.params)
  assert role.source == ''


def test_merged_is_the_same_function(small):
  role = noisy(roles.load_role({**small.student, 'lora': LORA}))
  bare = roles.merged(role)
  assert 'lora' not in bare.model.config and roles.merged(bare) is bare
  rows = [[5, 6, 7, 8, 9], [9, 3]]
  ours, theirs = (proof._logits(one, rows) for one in (role, bare))
  np.testing.assert_allclose(ours[0], theirs[0], atol=2e-5)
  assert np.abs(ours[0] - proof._logits(role._replace(params=lora_lib.split(role.params)[1]), rows)[0]).max() > 0.01


@pytest.fixture(scope='module')
def kept():
  """(torch, peft), or a skip that says what is not here."""
  return pytest.importorskip('torch'), pytest.importorskip('peft', reason='peft is not installed (pip install peft)')


@pytest.mark.parametrize('shape, settings, adapted', [
    (GPT2, dict(rank=2, alpha=6, targets=['attention/[qv]', 'mlp/down'], scaling='lora'), {'attn.c_attn', 'mlp.c_proj'}),
    pytest.param(GPT2, dict(rank=2, alpha=3, targets=['attention/.*'], scaling='rslora'), {'attn.c_attn', 'attn.c_proj'}, marks=pytest.mark.slow),
    (QWEN2, dict(rank=3, alpha=4.5, targets=['.*'], scaling='rslora'), {'self_attn.q_proj', 'mlp.gate_proj'}),
], ids=['gpt2', 'gpt2-rslora', 'qwen2'])
def test_peft_says_the_same(shape, settings, adapted, kept, small, tmp_path):
  torch, peft = kept
  config = dict(vocab_size=320, width=16, layers=2, heads=2, mlp_width=24, max_length=64) | shape
  made = noisy(roles.load_role(dict(model=dict(model='transformer', **config), tokenizer=small.student['load'], lora=settings)))
  own, base = jax.device_get(lora_lib.split(made.params))
  weights.write_hf(tmp_path / 'base', 'transformer', config, base)
  adapter = tmp_path / 'adapter'
  adapter.mkdir()
  adapters.write_peft(adapter, 'transformer', made.model.config, own, base=str(tmp_path / 'base'))
  model = proof.peft_model(adapter, tmp_path / 'base')
  assert adapted <= set(model.peft_config['default'].target_modules)
  ids = [3, 1, 4, 1, 5, 9, 2, 6]
  ours = proof._logits(made, [ids])[0]
  bare = proof._theirs(proof.transformers_model(tmp_path / 'base'), ids)
  assert np.abs(ours - bare).max() > 0.05, 'the adapter says something'
  np.testing.assert_allclose(ours, proof._theirs(model, ids), atol=1e-4, rtol=0)
  np.testing.assert_allclose(ours, proof._theirs(model.merge_and_unload(), ids), atol=1e-4, rtol=0)
  np.testing.assert_allclose(proof._logits(roles.merged(made), [ids])[0], proof._theirs(model, ids), atol=1e-4, rtol=0)


def test_an_export_with_an_adapter(kept, small, call, tmp_path):
  role = noisy(roles.load_role({**small.student, 'lora': LORA}))
  roles.save_role(tmp_path / 'saved', role, role.params)
  saved = dict(load=str(tmp_path / 'saved'))
  summary = call('export', 'adapter', roles=dict(student=saved), form='adapter')
  assert summary['proved'] is True and summary['max_logit_difference'] < 1e-4 and summary['same_greedy'] is True
  names = {path.name for path in (call.out('adapter') / 'model').iterdir()}
  assert {'adapter_config.json', 'adapter_model.safetensors', 'tokenizer.json', 'README.md'} <= names and 'model.safetensors' not in names
  text = (call.out('adapter') / 'model' / 'README.md').read_text()
  assert 'PeftModel.from_pretrained' in text and 'rank 2' in text


def test_an_adapter_that_is_not_there(small, call):
  with pytest.raises(ValueError, match="form='adapter', but student has no adapter; leave it out, or train with lora="):
    call('export', 'export', roles=dict(student=small.student), form='adapter')
  with pytest.raises(ValueError, match="form='both'; choose one of merged, adapter"):
    call('export', 'export', roles=dict(student=small.student), form='both')
