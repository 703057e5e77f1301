"""Checkpoints on disk: what is written is read, the same bytes for the same weights, what is damaged, half written or foreign is named."""
import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decoder_shapes import ALL, GPT2, LLAMA, MIXED, NEWER

from distill_jax.core import tree
from distill_jax.models import MODELS, weights

all_shapes = pytest.mark.parametrize('shape', [*ALL.values(), *NEWER.values()], ids=[*ALL, *NEWER])


def fresh(shape, seed=0):
  return MODELS['transformer'](**shape).init(jax.random.key(seed))


def assert_equal(one, two):
  one, two = tree.flatten(one), tree.flatten(two)
  assert set(one) == set(two)
  for path, leaf in one.items():
    np.testing.assert_array_equal(leaf, two[path], err_msg=path)


@pytest.fixture
def made(tmp_path):
  weights.write(tmp_path / 'it', 'transformer', LLAMA, fresh(LLAMA))
  return tmp_path / 'it'


@all_shapes
def test_what_is_written_is_read(shape, tmp_path):
  params = fresh(shape)
  weights.write(tmp_path / 'it', 'transformer', shape, params)
  name, config, back = weights.read(tmp_path / 'it')
  assert MODELS[name](**config) is MODELS['transformer'](**shape)
  assert weights.read_config(tmp_path / 'it') == (name, config)
  assert_equal(params, back)
  assert [path.name for path in tmp_path.iterdir()] == ['it']


def test_the_same_weights_are_the_same_bytes(tmp_path):
  params = fresh(MIXED)
  backwards = tree.unflatten(dict(reversed(tree.flatten(jax.device_get(params)).items())))
  weights.write(tmp_path / 'a', 'transformer', MIXED, params)
  weights.write(tmp_path / 'b', 'transformer', dict(reversed(MIXED.items())), backwards)
  for name in ('params.safetensors', 'model.json'):
    assert (tmp_path / 'a' / name).read_bytes() == (tmp_path / 'b' / name).read_bytes()


def test_bfloat16_is_kept_on_disk_and_read_as_float32(tmp_path):
  params = tree.cast(fresh(LLAMA), jnp.bfloat16)
  weights.write(tmp_path / 'it', 'transformer', LLAMA, params)
  _, _, back = weights.read(tmp_path / 'it')
  assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(back))
  assert_equal(tree.cast(params, jnp.float32), back)
  assert os.path.getsize(tmp_path / 'it' / 'params.safetensors') < 3 * tree.count(params)


def test_writing_again_replaces_weights_and_keeps_other_files(made):
  (made / 'tokenizer.json').write_text('{}')
  params = fresh(LLAMA, seed=1)
  weights.write(made, 'transformer', LLAMA, params)
  assert_equal(weights.read(made)[2], params)
  assert (made / 'tokenizer.json').read_text() == '{}'
  assert not list(made.parent.glob('.*'))


def test_a_writer_that_fails_leaves_the_old_checkpoint(made, monkeypatch):
  def full_disk(*_):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(weights, '_save', full_disk)
  with pytest.raises(OSError, match='No space'):
    weights.write(made, 'transformer', LLAMA, fresh(LLAMA, seed=1))
  with pytest.raises(OSError, match='No space'):
    weights.write(made.parent / 'new', 'transformer', LLAMA, fresh(LLAMA))
  assert [path.name for path in made.parent.iterdir()] == ['it']
  assert_equal(weights.read(made)[2], fresh(LLAMA))


@pytest.mark.parametrize('moves', range(3))
def test_a_writer_killed_at_any_move_leaves_nothing_that_reads_as_a_whole(made, monkeypatch, moves):
  """Over an existing directory: marker away, weights in, marker in. Killed before each, then written again."""
  done, move = [], os.replace

  def killed(*paths):
    if len(done) == moves:
      raise KeyboardInterrupt
    done.append(paths)
    move(*paths)

  with monkeypatch.context() as patch:
    patch.setattr(os, 'replace', killed)
    if moves < 2:
      with pytest.raises(KeyboardInterrupt):
        weights.write(made, 'transformer', LLAMA, fresh(LLAMA, seed=1))
      with pytest.raises(FileNotFoundError, match='half written'):
        weights.read(made)
    else:
      weights.write(made, 'transformer', LLAMA, fresh(LLAMA, seed=1))
  weights.write(made, 'transformer', LLAMA, fresh(LLAMA, seed=1))
  assert_equal(weights.read(made)[2], fresh(LLAMA, seed=1))
  assert [path.name for path in made.parent.iterdir()] == ['it']


def edit(made, **changes):
  about = json.loads((made / 'model.json').read_text())
  (made / 'model.json').write_text(json.dumps({**about, **changes}))


def test_a_directory_that_is_not_there_or_empty(tmp_path):
  with pytest.raises(FileNotFoundError, match='no such checkpoint directory'):
    weights.read(tmp_path / 'none')
  with pytest.raises(FileNotFoundError, match='it is empty'):
    weights.read(tmp_path)
  with pytest.raises(FileNotFoundError, match='no such checkpoint directory'):
    weights.read_config(tmp_path / 'none')
  with pytest.raises(FileNotFoundError, match='it is empty'):
    weights.read_config(tmp_path)


def test_a_half_written_directory(made):
  (made / 'params.safetensors').rename(made / 'elsewhere')
  with pytest.raises(FileNotFoundError, match='params.safetensors: missing; the checkpoint is half written'):
    weights.read(made)
  (made / 'model.json').unlink()
  with pytest.raises(FileNotFoundError, match='half written'):
    weights.read(made)


def test_a_file_that_is_cut_short(made):
  data = (made / 'params.safetensors').read_bytes()
  for size in (len(data) - 1, len(data) // 2, 100, 3, 0):
    (made / 'params.safetensors').write_bytes(data[:size])
    with pytest.raises(ValueError, match='params.safetensors: cut short or damaged'):
      weights.read(made)
  (made / 'model.json').write_text((made / 'model.json').read_text()[:20])
  with pytest.raises(ValueError, match='model.json: not JSON'):
    weights.read(made)


def test_a_newer_format_and_an_unknown_model(made):
  edit(made, format=2)
  with pytest.raises(ValueError, match='format 2, this version reads up to 1; update'):
    weights.read(made)
  edit(made, format=1, model='perceiver')
  with pytest.raises(ValueError, match="'perceiver' is not known; known are transformer"):
    weights.read(made)


def test_weights_of_another_config(made):
  for changed, message in (
      (dict(tied=False), "1 weights are missing, first 'head/kernel'"),
      (dict(mlp_width=40), r"'layers/0/mlp/down/kernel' has shape \(3, 48, 32\), the config says \(3, 40, 32\)")):
    edit(made, config={**LLAMA, **changed})
    with pytest.raises(ValueError, match=message):
      weights.read(made)
  weights.write(made, 'transformer', {**LLAMA, 'tied': False}, fresh({**LLAMA, 'tied': False}))
  edit(made, config=LLAMA)
  with pytest.raises(ValueError, match="1 weights too many, first 'head/kernel'"):
    weights.read(made)


def test_weights_of_another_config_are_not_written(tmp_path):
  for write in (weights.write, weights.write_hf):
    with pytest.raises(ValueError, match='cannot write: .*missing'):
      write(tmp_path / 'it', 'transformer', {**GPT2, 'tied': False}, fresh(GPT2))
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('shape', [LLAMA, MIXED, NEWER['experts'], NEWER['opt']])
def test_a_piece_is_that_part_of_the_whole(shape, tmp_path):
  """Any slices, also those that cut heads and stacks; as stored or in another float type."""
  params = tree.flatten(fresh(shape))
  weights.write(tmp_path / 'it', 'transformer', shape, tree.unflatten(params))
  rng = np.random.default_rng(0)

  def put(path, whole, piece):
    for dtype in (None, 'bfloat16', 'float32'):
      starts = [int(rng.integers(0, size)) for size in whole]
      index = tuple(slice(start, int(rng.integers(start, size)) + 1) for start, size in zip(starts, whole))
      got = piece(index, dtype and jnp.dtype(dtype))
      assert got.dtype == (dtype or 'float32')
      np.testing.assert_array_equal(got, np.asarray(params[path][index], got.dtype), err_msg=f'{path} {index}')
    return jnp.asarray(piece((slice(None),) * len(whole)))

  assert_equal(weights.read(tmp_path / 'it', put=put)[2], params)


@pytest.fixture
def foreign(tmp_path):
  """A small GPT-2 in the Hugging Face layout, made without transformers."""
  weights.write_hf(tmp_path / 'it', 'transformer', GPT2, fresh(GPT2))
  return tmp_path / 'it'


def edit_hf(foreign, **changes):
  about = json.loads((foreign / 'config.json').read_text())
  (foreign / 'config.json').write_text(json.dumps({key: value for key, value in {**about, **changes}.items() if value != 'away'}))


def test_the_layout_is_read_and_written_without_transformers(foreign):
  name, config, params = weights.read(foreign)
  assert config['architecture'] == 'GPT2LMHeadModel'
  assert MODELS[name](**{**config, 'architecture': None}) is MODELS['transformer'](**GPT2)
  assert_equal(params, fresh(GPT2))
  edit_hf(foreign, architectures='away')
  assert weights.read_config(foreign) == (name, config)


@pytest.mark.parametrize('changes, message', [
    (dict(architectures=['MambaForCausalLM']), "'MambaForCausalLM' is not known; known are GPT2LMHeadModel, .*Gemma3ForCausalLM"),
    (dict(architectures='away', model_type='mamba'), "'mamba' is not known"),
    (dict(n_inner=60), r"'transformer.h.0.mlp.c_proj.weight' has shape \(64, 32\), by config.json it is \(60, 32\)"),
    (dict(n_embd=36), r'shape \(32, 32\), by config.json it is \(32, 36\)'),
    (dict(n_layer=2), "12 weights too many, first 'transformer.h.2"),
    (dict(n_layer=4), "12 weights are missing, first 'transformer.h.3"),
    (dict(tie_word_embeddings=False), "1 weights are missing, first 'lm_head.weight'"),
    (dict(activation_function='swiglu'), "activation 'swiglu' of config.json is not known; known are silu"),
    (dict(scale_attn_by_inverse_layer_idx=True), 'scale_attn_by_inverse_layer_idx=True; only False can be read'),
    (dict(architectures=['LlamaForCausalLM'], rope_scaling=dict(rope_type='yarn')), "rope_type='yarn'; readable are default, linear, llama3"),
    (dict(architectures=['LlamaForCausalLM'], rope_scaling=dict(rope_type='linear')), "config.json has no 'factor'"),
    (dict(architectures=['OPTForCausalLM'], do_layer_norm_before=False), 'OPT: .*do_layer_norm_before=False; only True'),
    (dict(architectures=['OPTForCausalLM'], word_embed_proj_dim=16), 'word_embed_proj_dim=16 beside hidden_size=768'),
    (dict(architectures=['GemmaForCausalLM'], use_bidirectional_attention=True), 'use_bidirectional_attention=True; only False'),
    (dict(architectures=['GPTJForCausalLM'], rotary_dim=None), 'rotary_dim=null'),
])
def test_a_directory_that_cannot_be_read(foreign, changes, message):
  edit_hf(foreign, **changes)
  with pytest.raises(ValueError, match=message):
    weights.read(foreign)


@pytest.mark.parametrize('name', ['pytorch_model.bin', 'model.pt'])
def test_pickled_weights_are_never_opened(foreign, name):
  (foreign / 'model.safetensors').unlink()
  (foreign / name).write_bytes(b'cos\nsystem\n(S"false"\ntR.')
  with pytest.raises(FileNotFoundError, match=f'{name}.*never opened.*save_pretrained writes safetensors'):
    weights.read(foreign)


@pytest.mark.parametrize('shape, message', [
    (MIXED, 'Nearest is'),
    ({**LLAMA, 'norm': 'layer'}, "Nearest is LlamaForCausalLM, which cannot say norm='layer' "),
    ({**GPT2, 'attention_bias': False}, 'Nearest is GPT2LMHeadModel, which cannot say attention_bias=False '),
    ({**GPT2, 'kv_heads': 2}, 'cannot say kv_heads=2 '),
    ({**LLAMA, 'attention_bias': 'qkv', 'mlp_bias': True}, "cannot say "),
    ({**LLAMA, 'gated': False}, 'cannot say gated=False '),
    ({**NEWER['gemma'], 'embed_scale': 2.0}, 'Gemma3ForCausalLM, which cannot say embed_scale=2.0'),
    ({**LLAMA, 'architecture': 'Llama'}, "architecture='Llama' is not known; known are GPT2LMHeadModel, "),
])
def test_a_shape_that_no_family_has_is_not_written(shape, message, tmp_path):
  with pytest.raises(ValueError, match=message):
    weights.write_hf(tmp_path / 'it', 'transformer', shape, fresh({**shape, 'architecture': None}))
  assert not list(tmp_path.iterdir())


def test_a_config_that_names_no_architecture_is_written_as_one_that_says_all_of_it(tmp_path):
  right = dict(llama='Llama', gpt2='GPT2LMHeadModel', gpt_j='GPTJ', neox='GPTNeoX')
  for name, architecture in right.items():
    shape = {**ALL, **NEWER}[name]
    weights.write_hf(tmp_path / name, 'transformer', shape, fresh(shape))
    assert weights.read_config(tmp_path / name)[1]['architecture'].startswith(architecture)
    assert_equal(weights.read(tmp_path / name)[2], fresh(shape))
