"""Every family of decoders: the same logits, hidden states and greedy text as transformers, the way back bit for bit, and cut over a mesh."""
import functools
import pathlib
import tempfile
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

from distill_jax.core import mesh as mesh_lib, tree
from distill_jax.decode import loop
from distill_jax.models import MODELS, weights
from distill_jax.models.families import FAMILIES, find

LENGTH, PROMPT, TEXT, VOCAB = 80, 16, 64, 96      # several windows and, where positions are scaled, past the original length
GPT = dict(vocab_size=VOCAB, n_embd=32, n_head=4, n_positions=128, initializer_range=0.2)
NEOX = dict(vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=128,
            initializer_range=0.2)
LLAMA = dict(NEOX, num_key_value_heads=2)
LLAMA3 = dict(rope_type='llama3', rope_theta=500.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32)
KINDS = ['sliding_attention', 'sliding_attention', 'full_attention']
THEIRS = dict(
    gpt2=('GPT2', dict(GPT, n_layer=2)),
    gpt2_untied=('GPT2', dict(GPT, n_layer=2, n_inner=80, tie_word_embeddings=False, activation_function='gelu', layer_norm_epsilon=1e-6)),
    gpt_neo=('GPTNeo', dict(vocab_size=VOCAB, hidden_size=32, num_layers=4, num_heads=4, attention_types=[[['global', 'local'], 2]],
                            window_size=8, max_position_embeddings=128, initializer_range=0.2)),
    gpt_j=('GPTJ', dict(GPT, n_layer=2, n_head=2, rotary_dim=6)),
    gpt_neox=('GPTNeoX', dict(NEOX, rope_parameters=dict(rope_type='default', rope_theta=500.0, partial_rotary_factor=0.25))),
    gpt_neox_sequential=('GPTNeoX', dict(NEOX, use_parallel_residual=False, attention_bias=False)),
    opt=('OPT', dict(vocab_size=VOCAB, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=128,
                     word_embed_proj_dim=32, init_std=0.2)),
    llama=('Llama', dict(LLAMA, head_dim=12, tie_word_embeddings=True)),
    llama_biases=('Llama', dict(LLAMA, attention_bias=True, mlp_bias=True, rope_parameters=dict(rope_type='linear', rope_theta=1e4, factor=4.0))),
    llama_3=('Llama', dict(LLAMA, rope_parameters=LLAMA3)),
    mistral=('Mistral', dict(LLAMA, sliding_window=8)),
    qwen2=('Qwen2', dict(LLAMA, tie_word_embeddings=True, rope_parameters=dict(rope_type='default', rope_theta=1e6))),
    qwen2_windows=('Qwen2', dict(LLAMA, use_sliding_window=True, sliding_window=8, max_window_layers=1)),
    qwen3=('Qwen3', dict(LLAMA, head_dim=12)),
    phi3=('Phi3', dict(LLAMA, sliding_window=12, rope_parameters=dict(rope_type='default', rope_theta=1e4, partial_rotary_factor=0.5))),
    phi3_long=('Phi3', dict(LLAMA, max_position_embeddings=1024, original_max_position_embeddings=128, rope_parameters=dict(
        rope_type='longrope', rope_theta=1e4, short_factor=[1.0, 1.1, 1.3, 1.5], long_factor=[1.0, 2.0, 4.0, 8.0]))),
    gemma=('Gemma', dict(LLAMA, head_dim=12)),
    gemma2=('Gemma2', dict(LLAMA, head_dim=12, layer_types=KINDS[1:], sliding_window=8, query_pre_attn_scalar=24,
                           attn_logit_softcapping=4.0, final_logit_softcapping=6.0)),
    gemma3=('Gemma3', dict(LLAMA, num_hidden_layers=4, head_dim=12, layer_types=[*KINDS, KINDS[0]], sliding_window=8, rope_parameters=dict(
        full_attention=dict(rope_type='linear', factor=4.0, rope_theta=1e6), sliding_attention=dict(rope_type='default', rope_theta=1e4)))),
    mixtral=('Mixtral', dict(LLAMA, num_local_experts=4, num_experts_per_tok=2)),
    qwen3_moe=('Qwen3Moe', dict(LLAMA, num_hidden_layers=3, head_dim=12, num_experts=6, num_experts_per_tok=2, moe_intermediate_size=20,
                                mlp_only_layers=[1], norm_topk_prob=True)),
)
CONFIGS = dict(Gemma3='Gemma3TextConfig')
MODELS_OF = dict(GPT2='GPT2LMHeadModel')
# what these do is done by others too: their text and mesh wait for `pytest -m slow`
LIKE_OTHERS = ('gpt2_untied', 'gpt_neox_sequential', 'llama', 'llama_biases', 'qwen2_windows', 'phi3_long', 'gemma')
WRITE_LIKE_OTHERS = ('qwen2', 'qwen3', 'gemma2', 'qwen3_moe', 'mistral', 'llama_3', 'opt')
CUT_LIKE_OTHERS = ('gpt_neo', 'gpt_j', 'opt', 'mistral', 'qwen2', 'qwen3', 'gemma2')
every = pytest.mark.parametrize('kind', THEIRS)


def but(kinds):
  """Every kind; these, and LIKE_OTHERS, are slow."""
  return pytest.mark.parametrize('kind', [pytest.param(kind, marks=[pytest.mark.slow] * (kind in (*LIKE_OTHERS, *kinds))) for kind in THEIRS])


class Case(NamedTuple):
  """A random model of transformers, the directory it was saved to, and what we read there."""
  theirs: Any
  directory: pathlib.Path
  name: str
  config: dict
  params: Any


@functools.lru_cache(maxsize=None)
def case(kind) -> Case:
  """Biases and norms are random too."""
  torch, transformers = pytest.importorskip('torch'), pytest.importorskip('transformers')
  transformers.utils.logging.disable_progress_bar()
  family, config = THEIRS[kind]
  torch.manual_seed(0)
  tokens = dict(bos_token_id=None, eos_token_id=None, pad_token_id=None)
  config = getattr(transformers, CONFIGS.get(family, f'{family}Config'))(**config, **tokens)
  model = getattr(transformers, MODELS_OF.get(family, f'{family}ForCausalLM'))(config).eval()
  with torch.no_grad():
    for parameter in model.parameters():
      if parameter.ndim == 1:
        parameter.add_(0.1 * torch.randn_like(parameter))
    model.get_input_embeddings().weight.mul_(0.3)      # or a tied head repeats the last token for ever
  directory = pathlib.Path(_home()) / kind
  model.save_pretrained(directory)
  return Case(model, directory, *weights.read(directory))


@functools.lru_cache(maxsize=None)
def _home() -> str:
  held = tempfile.TemporaryDirectory(prefix='families')
  _HELD.append(held)
  return held.name


_HELD: list = []


@pytest.fixture(scope='module', autouse=True)
def swept():
  yield
  case.cache_clear()
  _home.cache_clear()
  while _HELD:
    _HELD.pop().cleanup()


def text() -> np.ndarray:
  return np.random.default_rng(0).integers(0, VOCAB, (2, LENGTH)).astype(np.int32)


def logits_of(model) -> np.ndarray:
  import torch
  with torch.no_grad():
    return model(torch.tensor(text())).logits.numpy()


def run(model, mesh=None):
  def outs(params, tokens_BL):
    with mesh_lib.on(mesh):
      out = model.apply(params, dict(tokens=tokens_BL), want=('layers',))
      return out['head'].logits(out['hidden']), out['layers'], out['hidden']
  return jax.jit(outs, compiler_options=QUICK)


QUICK = dict(xla_backend_optimization_level=0, xla_llvm_disable_expensive_passes=True)


def test_every_family_is_here():
  import transformers
  assert {MODELS_OF.get(family, f'{family}ForCausalLM') for family, _ in THEIRS.values()} == {name for name, family in FAMILIES.items() if family.model == 'transformer'}
  assert all(getattr(transformers, architecture) for architecture in FAMILIES)


@every
def test_logits_and_hidden_states(kind):
  import torch
  made = case(kind)
  logits, layers, hidden = run(MODELS[made.name](**made.config))(made.params, text())
  with torch.no_grad():
    theirs = made.theirs(torch.tensor(text()), output_hidden_states=True)
  np.testing.assert_allclose(logits, theirs.logits.numpy(), atol=1e-4)
  before_last = [layer.numpy() for layer in theirs.hidden_states[1:-1]]
  np.testing.assert_allclose(layers[:-1], before_last, atol=1e-4)
  np.testing.assert_allclose(hidden, theirs.hidden_states[-1].numpy(), atol=1e-4)
  assert theirs.logits.std() > 0.3


@but(WRITE_LIKE_OTHERS)
def test_greedy_text(kind):
  """64 tokens through `decode`, with its cache."""
  import torch
  made = case(kind)
  model, prompt = MODELS[made.name](**made.config), text()[:1, :PROMPT]
  theirs = made.theirs.generate(torch.tensor(prompt), max_new_tokens=TEXT, do_sample=False, pad_token_id=0)[0, PROMPT:].tolist()

  @functools.partial(jax.jit, compiler_options=QUICK)
  def ours(params):
    settings = loop.Settings(max_new_tokens=TEXT, temperature=0.0)
    state = loop.start(model, settings, None, params, prompt, np.ones_like(prompt), np.zeros((1, 2), np.uint32), jax.random.key(0), room=TEXT)
    return loop.advance(model, settings, None, model.ready(params), state, TEXT).tokens_RT
  assert ours(made.params)[0].tolist() == theirs and len(set(theirs)) > 3


@every
def test_the_way_back_is_bitwise(kind, tmp_path):
  import torch
  made = case(kind)
  weights.write_hf(tmp_path / 'back', made.name, made.config, made.params, tokens=dict(eos_token_id=2, pad_token_id=0, bos_token_id=None),
                   shard_bytes=30_000)
  assert (tmp_path / 'back/model.safetensors.index.json').exists()
  back = type(made.theirs).from_pretrained(tmp_path / 'back').eval()
  state = back.state_dict()
  assert set(state) == set(made.theirs.state_dict())
  for key, value in made.theirs.state_dict().items():
    assert torch.equal(value, state[key]), key
  np.testing.assert_array_equal(logits_of(made.theirs), logits_of(back))
  assert (back.config.eos_token_id, back.config.pad_token_id, back.config.bos_token_id) == (2, 0, None)
  assert back.generation_config.eos_token_id == 2
  name, config, params = weights.read(tmp_path / 'back')
  assert (name, config) == (made.name, made.config)
  for path, leaf in tree.flatten(params).items():
    np.testing.assert_array_equal(leaf, tree.flatten(made.params)[path])


@but(CUT_LIKE_OTHERS)
def test_cut_over_a_mesh(kind):
  """Each device reads its piece from disk; the logits are those of transformers."""
  made = case(kind)
  sizes = dict(fsdp=2, tensor=2, expert=2) if made.config['experts'] else dict(fsdp=2, tensor=2)
  mesh = mesh_lib.make_mesh(sizes, devices=jax.devices()[:int(np.prod(list(sizes.values())))])
  model = MODELS[made.name](**made.config)
  where = tree.flatten(mesh_lib.of_params(mesh, jax.eval_shape(model.init, jax.random.key(0)), model.axes))
  put = lambda path, shape, piece: jax.make_array_from_callback(shape, where[path], lambda index: piece(index, np.float32))
  params = weights.read(made.directory, put=put)[2]
  for path, leaf in tree.flatten(params).items():
    np.testing.assert_array_equal(leaf, tree.flatten(made.params)[path])
  tokens = jax.device_put(text(), mesh_lib.rows(mesh))
  np.testing.assert_allclose(run(model, mesh)(params, tokens)[0], logits_of(made.theirs), atol=1e-4)


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
def test_other_float_types_are_written_and_read(dtype, tmp_path):
  torch, transformers = pytest.importorskip('torch'), pytest.importorskip('transformers')
  made = case('gpt_neox')
  weights.write_hf(tmp_path, made.name, made.config, made.params, dtype=dtype)
  model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
  assert type(model) is type(made.theirs) and model.dtype == getattr(torch, dtype)
  rounded = tree.flatten(tree.cast(tree.cast(made.params, dtype), 'float32'))
  for path, leaf in tree.flatten(weights.read(tmp_path)[2]).items():
    np.testing.assert_array_equal(leaf, rounded[path])


def test_a_sharded_checkpoint_is_read_like_a_whole_one(tmp_path):
  made = case('llama')
  made.theirs.save_pretrained(tmp_path, max_shard_size='30KB')
  assert len(list(tmp_path.glob('*.safetensors'))) > 2
  for path, leaf in tree.flatten(weights.read(tmp_path)[2]).items():
    np.testing.assert_array_equal(leaf, tree.flatten(made.params)[path])
  next(tmp_path.glob('*.safetensors')).unlink()
  with pytest.raises(FileNotFoundError, match='half written or half copied'):
    weights.read(tmp_path)


@pytest.mark.parametrize('kind, prefix, old', [
    ('gpt2', 'transformer.', 'h.0.attn.bias'), ('gpt2_untied', 'transformer.', 'h.1.attn.masked_bias'),
    ('llama_3', 'model.', 'layers.0.self_attn.rotary_emb.inv_freq'), ('gpt_neox', 'gpt_neox.', 'layers.0.attention.masked_bias'),
    ('opt', 'model.', 'decoder.rotary_emb.inv_freq')])
def test_names_without_the_prefix_and_old_buffers_are_read(kind, prefix, old, tmp_path):
  """As in the first published GPT-2 files: no 'transformer.' before the names, and attention masks among the weights."""
  from safetensors.numpy import load_file, save_file
  made = case(kind)
  tensors = load_file(made.directory / 'model.safetensors')
  bare = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
  save_file({**bare, old: np.ones((1, 1, 4, 4), np.float32)}, tmp_path / 'model.safetensors')
  (tmp_path / 'config.json').write_text((made.directory / 'config.json').read_text())
  for path, leaf in tree.flatten(weights.read(tmp_path)[2]).items():
    np.testing.assert_array_equal(leaf, tree.flatten(made.params)[path])


@every
def test_the_config_is_read_as_older_files_say_it(kind):
  """rope_theta, rope_scaling, rotary_pct, num_experts, sliding_window_pattern beside the newer keys; and by model_type alone."""
  import json
  made = case(kind)
  hf = json.loads((made.directory / 'config.json').read_text())
  architecture = hf.pop('architectures')[0]
  assert find.of_hf(hf, 'here') == architecture
  rope = hf.pop('rope_parameters', None) or {}
  if 'full_attention' in rope:
    rope, local = rope['full_attention'], rope['sliding_attention']
    hf['rope_local_base_freq'] = local['rope_theta']
  if architecture == 'GPTNeoXForCausalLM':
    hf.update(rotary_emb_base=rope['rope_theta'], rotary_pct=rope['partial_rotary_factor'])
  elif rope:
    hf.update(rope_theta=rope.pop('rope_theta'), partial_rotary_factor=rope.pop('partial_rotary_factor', 1.0))
    kind = rope.pop('rope_type')
    hf.update(rope_scaling=None if kind == 'default' else dict(rope, type=kind.replace('longrope', 'su')))
  if 'num_local_experts' in hf and 'moe_intermediate_size' in hf:
    hf['num_experts'] = hf.pop('num_local_experts')
  assert MODELS['transformer'](**find.config_in(architecture, hf)).config == MODELS['transformer'](**made.config).config


def test_ids_that_the_tokenizer_does_not_have(tmp_path):
  """An embedding longer than the vocabulary, as Qwen's: read, written as it was, and its last ids are never drawn, likely as they are."""
  from distill_jax.core import keys
  from distill_jax.core.types import Role
  from distill_jax.data import text as text_lib
  from distill_jax.decode import sample
  text_of = text_lib.train_bpe(['a'], size=258)
  shape = dict(vocab_size=320, width=16, layers=1, heads=2, mlp_width=16, max_length=64, attention_bias='qkv', tied=False)
  params = MODELS['transformer'](**shape).init(jax.random.key(0))
  liked = params['head']['kernel'].at[:, 300:].multiply(200.0)
  weights.write_hf(tmp_path, 'transformer', shape, {**params, 'head': dict(kernel=liked)})
  name, config, read = weights.read(tmp_path)
  assert read['embed']['tokens'].shape == (320, 16) and config['architecture'] == 'Qwen2ForCausalLM'
  model = MODELS[name](**config)
  logits = run(model)(read, np.zeros((1, 4), np.int32))[0]
  assert (np.argmax(logits, -1) >= 300).any()
  role = Role(model, text_of, read)
  for temperature in (0.0, 5.0):
    texts, _ = sample.write(role, read, ['ab', 'c'], [keys.content_id(i) for i in range(2)], jax.random.key(1), max_new_tokens=24,
                            temperature=temperature)
    assert max(int(one['tokens'].max()) for several in texts for one in several) < text_of.vocab_size
