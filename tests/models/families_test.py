"""Hugging Face directories: the same logits and the same greedy text as transformers, and the way back bit for bit."""
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decoder_shapes import GPT2, LLAMA, MIXED

from distill_jax.core import tree
from distill_jax.models import MODELS, families, weights

SMALL_LLAMA = dict(
    vocab_size=97, hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
    max_position_embeddings=128, rms_norm_eps=1e-5, initializer_range=0.2)
THEIRS = dict(
    gpt2=('GPT2', dict(vocab_size=97, n_embd=48, n_layer=3, n_head=4, n_positions=128, initializer_range=0.2)),
    gpt2_untied=('GPT2', dict(vocab_size=97, n_embd=48, n_layer=2, n_head=3, n_inner=80, n_positions=128, tie_word_embeddings=False,
                              activation_function='gelu', layer_norm_epsilon=1e-6, initializer_range=0.2)),
    llama_tied=('Llama', dict(SMALL_LLAMA, tie_word_embeddings=True)),
    llama_untied=('Llama', dict(SMALL_LLAMA, head_dim=20, rope_parameters=dict(rope_type='default', rope_theta=500.0))),
    llama_biases=('Llama', dict(SMALL_LLAMA, attention_bias=True, mlp_bias=True, num_key_value_heads=1)),
    qwen2=('Qwen2', dict(SMALL_LLAMA, tie_word_embeddings=True, rope_parameters=dict(rope_type='default', rope_theta=1e6))),
)
LENGTH = 80


def theirs(kind):
  """A random transformers model whose biases and norms are random too."""
  torch, transformers = pytest.importorskip('torch'), pytest.importorskip('transformers')
  family, config = THEIRS[kind]
  torch.manual_seed(0)
  name = {'GPT2': 'GPT2LMHeadModel'}.get(family, f'{family}ForCausalLM')
  tokens = dict(bos_token_id=None, eos_token_id=None, pad_token_id=None)
  model = getattr(transformers, name)(getattr(transformers, f'{family}Config')(**config, **tokens)).eval()
  with torch.no_grad():
    for parameter in model.parameters():
      if parameter.ndim == 1:
        parameter.add_(0.1 * torch.randn_like(parameter))
  return model


def logits_of(model, tokens_BL):
  import torch
  with torch.no_grad():
    return model(torch.tensor(tokens_BL)).logits.numpy()


def our_logits(model, params):
  def logits(tokens_BL):
    out = model.apply(params, dict(tokens=tokens_BL))
    return out['head'].logits(out['hidden'])
  return jax.jit(logits)


def greedy(logits, prompt, count):
  """`count` tokens by whole forwards over a row of fixed length; what stands to the right of a token cannot reach it."""
  row = np.zeros((1, LENGTH), np.int32)
  row[0, :len(prompt)] = prompt
  for at in range(len(prompt), len(prompt) + count):
    row[0, at] = np.argmax(logits(row)[0, at - 1])
  return row[0, len(prompt):len(prompt) + count].tolist()


@pytest.mark.parametrize('kind', THEIRS)
def test_a_model_of_transformers_is_read_and_written_back(kind, tmp_path):
  import torch
  model = theirs(kind)
  model.save_pretrained(tmp_path / 'theirs')
  name, config, params = weights.read(tmp_path / 'theirs')
  ours = our_logits(MODELS[name](**config), params)

  tokens = np.random.default_rng(0).integers(0, 97, (3, LENGTH)).astype(np.int32)
  np.testing.assert_allclose(ours(tokens), logits_of(model, tokens), atol=1e-4)

  prompt = tokens[0, :8].tolist()
  text = model.generate(torch.tensor([prompt]), max_new_tokens=64, do_sample=False, pad_token_id=0)[0, 8:].tolist()
  assert greedy(ours, prompt, 64) == text and len(set(text)) > 5

  weights.write_hf(tmp_path / 'back', name, config, params, tokens=dict(eos_token_id=2, pad_token_id=0, bos_token_id=None))
  back = type(model).from_pretrained(tmp_path / 'back').eval()
  assert {key: value.shape for key, value in back.state_dict().items()} == {key: value.shape for key, value in model.state_dict().items()}
  for key, value in model.state_dict().items():
    assert torch.equal(value, back.state_dict()[key]), key
  np.testing.assert_array_equal(logits_of(model, tokens), logits_of(back, tokens))
  assert (back.config.eos_token_id, back.config.pad_token_id, back.config.bos_token_id) == (2, 0, None)
  assert back.generation_config.eos_token_id == 2


def test_auto_model_loads_what_is_written_in_bfloat16(tmp_path):
  torch, transformers = pytest.importorskip('torch'), pytest.importorskip('transformers')
  params = MODELS['transformer'](**LLAMA).init(jax.random.key(0))
  weights.write_hf(tmp_path / 'it', 'transformer', LLAMA, params, dtype='bfloat16')
  model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'it')
  assert type(model).__name__ == 'LlamaForCausalLM' and model.dtype == torch.bfloat16
  rounded = tree.flatten(tree.cast(tree.cast(params, jnp.bfloat16), jnp.float32))
  for path, leaf in tree.flatten(weights.read(tmp_path / 'it')[2]).items():
    np.testing.assert_array_equal(leaf, rounded[path])


def test_a_sharded_checkpoint_is_read_like_a_whole_one(tmp_path):
  model = theirs('llama_untied')
  model.save_pretrained(tmp_path / 'whole')
  model.save_pretrained(tmp_path / 'cut', max_shard_size='50KB')
  assert len(list((tmp_path / 'cut').glob('*.safetensors'))) > 2
  one, two = (tree.flatten(weights.read(tmp_path / name)[2]) for name in ('whole', 'cut'))
  for path, leaf in one.items():
    np.testing.assert_array_equal(leaf, two[path])
  next((tmp_path / 'cut').glob('*.safetensors')).unlink()
  with pytest.raises(FileNotFoundError, match='half written or half copied'):
    weights.read(tmp_path / 'cut')


@pytest.mark.parametrize('kind', ['gpt2', 'gpt2_untied', 'llama_untied'])
def test_names_without_the_prefix_and_old_buffers_are_read(kind, tmp_path):
  """As in the first published GPT-2 files: no 'transformer.' before the names, and attention masks among the weights."""
  from safetensors.numpy import load_file, save_file
  model = theirs(kind)
  model.save_pretrained(tmp_path)
  prefix, old = ('transformer.', 'h.0.attn.bias') if 'gpt2' in kind else ('model.', 'layers.0.self_attn.rotary_emb.inv_freq')
  tensors = load_file(tmp_path / 'model.safetensors')
  expected = tree.flatten(weights.read(tmp_path)[2])
  bare = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
  save_file({**bare, old: np.ones((1, 1, 4, 4), np.float32)}, tmp_path / 'model.safetensors')
  for path, leaf in tree.flatten(weights.read(tmp_path)[2]).items():
    np.testing.assert_array_equal(leaf, expected[path])


@pytest.fixture
def made(tmp_path):
  """A small GPT-2 in the Hugging Face layout, made without transformers."""
  weights.write_hf(tmp_path / 'it', 'transformer', GPT2, MODELS['transformer'](**GPT2).init(jax.random.key(0)))
  return tmp_path / 'it'


def edit(made, **changes):
  about = json.loads((made / 'config.json').read_text())
  (made / 'config.json').write_text(json.dumps({key: value for key, value in {**about, **changes}.items() if value != 'away'}))


def test_the_layout_is_read_and_written_without_transformers(made):
  name, config, _ = weights.read(made)
  assert MODELS[name](**config) is MODELS['transformer'](**GPT2)
  edit(made, architectures='away')
  assert weights.read_config(made) == (name, config)


@pytest.mark.parametrize('changes, message', [
    (dict(architectures=['MambaForCausalLM']), "'MambaForCausalLM' is not known; known are GPT2LMHeadModel, "),
    (dict(architectures='away', model_type='mamba'), "'mamba' is not known"),
    (dict(n_inner=60), r'gives layers/0/mlp/\S+ the shape'),
    (dict(n_embd=30), r'by config.json it is'),
    (dict(n_layer=2), "weights too many, first 'transformer.h.2"),
    (dict(n_layer=4), "weights are missing, first 'transformer.h.3"),
    (dict(tie_word_embeddings=False), "1 weights are missing, first 'lm_head.weight'"),
    (dict(activation_function='relu'), "activation 'relu' of config.json is not known"),
    (dict(scale_attn_by_inverse_layer_idx=True), 'scale_attn_by_inverse_layer_idx=True; only False can be read'),
    (dict(architectures=['LlamaForCausalLM'], rope_scaling=dict(rope_type='llama3')), "rope_type='llama3'; only plain"),
    (dict(architectures=['Qwen2ForCausalLM'], use_sliding_window=True), 'use_sliding_window'),
])
def test_a_directory_that_cannot_be_read(made, changes, message):
  edit(made, **changes)
  with pytest.raises(ValueError, match=message):
    weights.read(made)


def test_a_directory_without_safetensors(made):
  (made / 'model.safetensors').rename(made / 'pytorch_model.bin')
  with pytest.raises(FileNotFoundError, match='pytorch_model.bin.*save it again with transformers'):
    weights.read(made)


@pytest.mark.parametrize('shape', [MIXED, {**LLAMA, 'norm': 'layer'}, {**GPT2, 'attention_bias': False}, {**LLAMA, 'gated': False}])
def test_a_shape_that_no_family_has_is_not_written(shape, tmp_path):
  with pytest.raises(ValueError, match='no Hugging Face architecture has this shape.*Known.*GPT2LMHeadModel.*LlamaForCausalLM'):
    weights.write_hf(tmp_path / 'it', 'transformer', shape, MODELS['transformer'](**shape).init(jax.random.key(0)))
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('shape, message', [
    ({**GPT2, 'kv_heads': 2}, 'GPT-2 has no kv_heads=2'),
    ({**GPT2, 'head_dim': 16}, 'GPT-2 has no .*head_dim=16'),
    ({**LLAMA, 'attention_bias': 'qkv', 'head_dim': 16}, 'Qwen2 has no head_dim=16'),
    ({**LLAMA, 'attention_bias': 'qkv', 'mlp_bias': True}, "Llama has no attention_bias='qkv'"),
])
def test_a_family_refuses_what_it_lacks(shape, message):
  config = MODELS['transformer'](**shape).config
  with pytest.raises(ValueError, match=message):
    families.of_config(config).config_out(config)
