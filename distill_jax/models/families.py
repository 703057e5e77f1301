"""How models of the Hugging Face layout map to ours and back: config.json keys and weight names, one table a family."""
from typing import Any, Callable, Mapping, NamedTuple, Sequence

import numpy as np

Config = Mapping[str, Any]

ACTIVATIONS = {'silu': 'silu', 'swish': 'silu', 'gelu_new': 'gelu_tanh', 'gelu_pytorch_tanh': 'gelu_tanh', 'gelu': 'gelu'}


class Row(NamedTuple):
  """One weight of ours and where it stands in theirs. '{}' in `theirs` is the layer number; `ours` is then a path below a block."""
  ours: str
  theirs: str
  turned: bool = False     # theirs is [out, in], ours [in, out]
  part: int | None = None  # theirs holds q, k, v side by side on the last axis; which third is ours


class Family(NamedTuple):
  """One architecture: (config.json -> config), (config -> config.json), its weights, and what may be skipped in its files."""
  architecture: str
  model_type: str
  config_in: Callable[[Config], dict]
  config_out: Callable[[Config], dict]
  shape: Mapping[str, Any]            # what a config of ours must hold to be of this family
  rows: Sequence[Row]
  prefix: str                         # a base model saved alone lacks this before its names
  skipped: Sequence[str]              # patterns of tensors that are no weights (buffers of old versions)

  @property
  def title(self) -> str:
    return f'{self.architecture} ({", ".join(f"{key}={value}" for key, value in self.shape.items())})'


def _refuse(family: str, hf: Config, wanted: Mapping[str, Any]) -> None:
  for key, value in wanted.items():
    if hf.get(key, value) != value:
      raise ValueError(f'{family}: config.json says {key}={hf[key]!r}; only {value!r} can be read')


def _activation(family: str, name: str) -> str:
  if name not in ACTIVATIONS:
    raise ValueError(f'{family}: activation {name!r} of config.json is not known; known are {", ".join(ACTIVATIONS)}')
  return ACTIVATIONS[name]


def _act_out(name: str) -> str:
  return {'silu': 'silu', 'gelu_tanh': 'gelu_new', 'gelu': 'gelu'}[name]


def _gpt2_in(hf: Config) -> dict:
  _refuse('GPT-2', hf, dict(scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False, add_cross_attention=False))
  width = hf.get('n_embd', 768)
  return dict(
      vocab_size=hf.get('vocab_size', 50257), width=width, layers=hf.get('n_layer', 12), heads=hf.get('n_head', 12),
      mlp_width=hf.get('n_inner') or 4 * width, norm='layer', norm_eps=hf.get('layer_norm_epsilon', 1e-5), positions='learned',
      max_length=hf.get('n_positions', 1024), activation=_activation('GPT-2', hf.get('activation_function', 'gelu_new')), gated=False,
      attention_bias=True, mlp_bias=True, tied=hf.get('tie_word_embeddings', True))


def _gpt2_out(config: Config) -> dict:
  if config['kv_heads'] != config['heads'] or config['head_dim'] * config['heads'] != config['width']:
    raise ValueError(
        f'GPT-2 has no kv_heads={config["kv_heads"]}, head_dim={config["head_dim"]}: leave both out of the config, or take a Llama shape')
  rate = config['dropout']
  return dict(
      vocab_size=config['vocab_size'], n_embd=config['width'], n_layer=config['layers'], n_head=config['heads'],
      n_inner=config['mlp_width'], n_positions=config['max_length'], layer_norm_epsilon=config['norm_eps'],
      activation_function=_act_out(config['activation']), tie_word_embeddings=config['tied'],
      resid_pdrop=rate, embd_pdrop=rate, attn_pdrop=0.0)


def _llama_in(hf: Config) -> dict:
  rope = hf.get('rope_parameters') or hf.get('rope_scaling') or {}
  kind = rope.get('rope_type', rope.get('type', 'default'))
  if kind != 'default':
    raise ValueError(f'Llama: config.json says rope_type={kind!r}; only plain rotary positions can be read')
  heads = hf.get('num_attention_heads', 32)
  width = hf.get('hidden_size', 4096)
  return dict(
      vocab_size=hf.get('vocab_size', 32000), width=width, layers=hf.get('num_hidden_layers', 32), heads=heads,
      kv_heads=hf.get('num_key_value_heads') or heads, head_dim=hf.get('head_dim') or width // heads,
      mlp_width=hf.get('intermediate_size', 11008), norm='rms', norm_eps=hf.get('rms_norm_eps', 1e-6), positions='rope',
      max_length=hf.get('max_position_embeddings', 2048), rope_theta=rope.get('rope_theta', hf.get('rope_theta', 10000.0)),
      activation=_activation('Llama', hf.get('hidden_act', 'silu')), gated=True, attention_bias=hf.get('attention_bias', False),
      mlp_bias=hf.get('mlp_bias', False), tied=hf.get('tie_word_embeddings', False))


def _plain_out(config: Config) -> dict:
  """What Llama and Qwen2 write alike."""
  return dict(
      vocab_size=config['vocab_size'], hidden_size=config['width'], num_hidden_layers=config['layers'],
      num_attention_heads=config['heads'], num_key_value_heads=config['kv_heads'], intermediate_size=config['mlp_width'],
      rms_norm_eps=config['norm_eps'], max_position_embeddings=config['max_length'],
      rope_parameters=dict(rope_type='default', rope_theta=config['rope_theta']), hidden_act=_act_out(config['activation']),
      tie_word_embeddings=config['tied'])


def _llama_out(config: Config) -> dict:
  if config['attention_bias'] == 'qkv':
    raise ValueError("Llama has no attention_bias='qkv' beside mlp_bias=True: take True or False, or mlp_bias=False (Qwen2)")
  return dict(_plain_out(config), head_dim=config['head_dim'], attention_bias=config['attention_bias'], mlp_bias=config['mlp_bias'])


def _qwen2_in(hf: Config) -> dict:
  if hf.get('use_sliding_window'):
    raise ValueError('Qwen2: config.json says use_sliding_window=true; only full attention can be read')
  return {**_llama_in(hf), 'attention_bias': 'qkv', 'mlp_bias': False}


def _qwen2_out(config: Config) -> dict:
  if config['head_dim'] * config['heads'] != config['width']:
    raise ValueError(f'Qwen2 has no head_dim={config["head_dim"]} beside width={config["width"]}: leave it out of the config')
  return dict(_plain_out(config), use_sliding_window=False)


def _kernel_and_bias(ours: str, theirs: str, **how) -> tuple[Row, Row]:
  return Row(f'{ours}/kernel', f'{theirs}.weight', **how), Row(f'{ours}/bias', f'{theirs}.bias', **{**how, 'turned': False})


def _norm(ours: str, theirs: str) -> tuple[Row, Row]:
  return Row(f'{ours}/scale', f'{theirs}.weight'), Row(f'{ours}/bias', f'{theirs}.bias')


GPT2 = Family(
    'GPT2LMHeadModel', 'gpt2', _gpt2_in, _gpt2_out,
    dict(norm='layer', positions='learned', gated=False, attention_bias=True, mlp_bias=True),
    (
        Row('embed/tokens', 'transformer.wte.weight'), Row('embed/positions', 'transformer.wpe.weight'),
        *_norm('norm', 'transformer.ln_f'), Row('head/kernel', 'lm_head.weight', turned=True),
        *_norm('attention_norm', 'transformer.h.{}.ln_1'), *_norm('mlp_norm', 'transformer.h.{}.ln_2'),
        *(row for part, name in enumerate('qkv')
          for row in _kernel_and_bias(f'attention/{name}', 'transformer.h.{}.attn.c_attn', part=part)),
        *_kernel_and_bias('attention/o', 'transformer.h.{}.attn.c_proj'),
        *_kernel_and_bias('mlp/up', 'transformer.h.{}.mlp.c_fc'), *_kernel_and_bias('mlp/down', 'transformer.h.{}.mlp.c_proj'),
    ), 'transformer.', (r'.*\.attn\.(masked_)?bias',))

LLAMA = Family(
    'LlamaForCausalLM', 'llama', _llama_in, _llama_out, dict(norm='rms', positions='rope', gated=True),
    (
        Row('embed/tokens', 'model.embed_tokens.weight'), Row('norm/scale', 'model.norm.weight'),
        Row('head/kernel', 'lm_head.weight', turned=True),
        Row('attention_norm/scale', 'model.layers.{}.input_layernorm.weight'),
        Row('mlp_norm/scale', 'model.layers.{}.post_attention_layernorm.weight'),
        *(row for name in 'qkvo' for row in _kernel_and_bias(f'attention/{name}', f'model.layers.{{}}.self_attn.{name}_proj', turned=True)),
        *(row for name in ('gate', 'up', 'down')
          for row in _kernel_and_bias(f'mlp/{name}', f'model.layers.{{}}.mlp.{name}_proj', turned=True)),
    ), 'model.', (r'.*\.rotary_emb\.inv_freq',))

QWEN2 = LLAMA._replace(
    architecture='Qwen2ForCausalLM', model_type='qwen2', config_in=_qwen2_in, config_out=_qwen2_out,
    shape=dict(norm='rms', positions='rope', gated=True, attention_bias='qkv', mlp_bias=False))

FAMILIES = (GPT2, QWEN2, LLAMA)


def of_hf(hf: Config, where: str) -> Family:
  """The family of a config.json, by `architectures` or else `model_type`."""
  name = (hf.get('architectures') or [None])[0]
  for family in FAMILIES:
    if name == family.architecture or (name is None and hf.get('model_type') == family.model_type):
      return family
  known = ', '.join(family.architecture for family in FAMILIES)
  raise ValueError(f'{where}: architecture {name or hf.get("model_type")!r} is not known; known are {known}')


def of_config(config: Config) -> Family:
  """The family that a config of ours can be written as."""
  if set(config['pattern']) == {'global'}:
    for family in FAMILIES:
      if all(config[key] == value for key, value in family.shape.items()):
        return family
  known = '; '.join(family.title for family in FAMILIES)
  raise ValueError(f'no Hugging Face architecture has this shape: {dict(config)}. Known, with pattern=("global",): {known}')


def slot(config: Config, number: int) -> tuple[str, int | None]:
  """Where layer `number` stands: (path of its block, index on the stacked axis or None in the remainder)."""
  places = len(config['pattern'])
  repeats = config['layers'] // places
  if number < repeats * places:
    return f'layers/{number % places}', number // places
  return f'rest/{number - repeats * places}', None


def names(family: Family, config: Config, paths: Sequence[str]) -> dict[str, list[tuple[Row, str]]]:
  """For each path of ours, the rows and names of theirs, in the order of the stacked axis (one where it has none)."""
  found: dict[str, list[tuple[Row, str]]] = {path: [] for path in paths}
  for row in family.rows:
    if '{}' not in row.theirs:
      if row.ours in found:
        found[row.ours].append((row, row.theirs))
      continue
    for number in range(config['layers']):
      path = f'{slot(config, number)[0]}/{row.ours}'
      if path in found:
        found[path].append((row, row.theirs.format(number)))
  return found


def shape_of_ours(row: Row, shape: Sequence[int]) -> tuple[int, ...]:
  """The shape that their tensor of `shape` gives our weight."""
  if row.part is not None:
    shape = (*shape[:-1], -(-shape[-1] // 3))
  return tuple(shape[::-1] if row.turned else shape)


def index_of_theirs(row: Row, shape: Sequence[int], index: Sequence[slice]) -> tuple[slice, ...]:
  """Where a part of our weight stands in their tensor of `shape`; it is turned where the row says so."""
  index = tuple(slice(*part.indices(size)[:2]) for part, size in zip(index, shape_of_ours(row, shape)))
  index = index[::-1] if row.turned else index
  if row.part is None:
    return index
  skip = row.part * -(-shape[-1] // 3)
  return (*index[:-1], slice(index[-1].start + skip, index[-1].stop + skip))


def theirs(parts: Mapping[int | None, tuple[Row, np.ndarray]]) -> np.ndarray:
  """Our weight, or our weights by part, as their one tensor."""
  tensors = [weight.T if row.turned else weight for _, (row, weight) in sorted(parts.items(), key=lambda item: item[0] or 0)]
  return np.ascontiguousarray(tensors[0] if len(tensors) == 1 else np.concatenate(tensors, axis=-1))
