"""Llama and those built like it: Mistral, Qwen2, Qwen3, Phi-3, and with experts Mixtral and Qwen3-MoE."""
from typing import Any

from distill_jax.models.families.rows import (KINDS, Config, Cut, Family, Row, activation, activation_out, along, head, kernel_and_bias,
                                              norm, period, refuse, rope_in, rope_out)


def plain_in(family: str, hf: Config, **defaults) -> dict:
  """What config.json of all of them says. defaults: of keys that a file leaves out."""
  hf = {**dict(vocab_size=32000, hidden_size=4096, num_hidden_layers=32, num_attention_heads=32, intermediate_size=11008, rms_norm_eps=1e-6,
               max_position_embeddings=2048, hidden_act='silu', tie_word_embeddings=False), **defaults, **hf}
  theta, rotary = rope_in(family, hf)
  heads = hf['num_attention_heads']
  return dict(
      vocab_size=hf['vocab_size'], width=hf['hidden_size'], layers=hf['num_hidden_layers'], heads=heads,
      kv_heads=hf.get('num_key_value_heads') or heads, head_dim=hf.get('head_dim') or hf['hidden_size'] // heads,
      mlp_width=hf['intermediate_size'], norm_eps=hf['rms_norm_eps'], max_length=hf['max_position_embeddings'], rope_theta=theta,
      rotary=rotary, activation=activation(family, hf['hidden_act']), tied=hf['tie_word_embeddings'])


def plain_out(config: Config) -> dict:
  """What all of them write. One that does not know head_dim reads it back as width / heads."""
  return dict(
      vocab_size=config['vocab_size'], hidden_size=config['width'], num_hidden_layers=config['layers'],
      num_attention_heads=config['heads'], num_key_value_heads=config['kv_heads'], head_dim=config['head_dim'],
      intermediate_size=config['mlp_width'], rms_norm_eps=config['norm_eps'], max_position_embeddings=config['max_length'],
      rope_parameters=rope_out(config), hidden_act=activation_out(config['activation']), tie_word_embeddings=config['tied'])


def kinds_in(hf: Config, layers: int, otherwise: list[str]) -> dict:
  """pattern and window of layer_types, of `otherwise` where it is left out."""
  kinds = [KINDS[kind] for kind in hf.get('layer_types') or otherwise]
  return dict(pattern=period(kinds), window=hf['sliding_window'] if 'local' in kinds else None)


def kinds_out(config: Config) -> dict:
  theirs = {ours: theirs for theirs, ours in KINDS.items()}
  return dict(layer_types=[theirs[kind] for kind in along(config['pattern'], config['layers'])], sliding_window=config['window'])


def _llama_in(hf: Config) -> dict:
  return dict(plain_in('Llama', hf), attention_bias=hf.get('attention_bias', False), mlp_bias=hf.get('mlp_bias', False))


def _llama_out(config: Config) -> dict:
  return dict(plain_out(config), attention_bias=config['attention_bias'] is True, mlp_bias=config['mlp_bias'])


def _mistral_in(hf: Config) -> dict:
  window = hf.get('sliding_window', 4096)
  refuse('Mistral', hf, dict(layer_types=None))
  return dict(plain_in('Mistral', hf, max_position_embeddings=131072, num_key_value_heads=8, intermediate_size=14336),
              pattern=('global',) if window is None else ('local',), window=window)


def _window_out(config: Config) -> dict:
  return dict(plain_out(config), sliding_window=config['window'])


def _qwen_in(family: str, hf: Config, **defaults) -> dict:
  hf = {**dict(vocab_size=151936, intermediate_size=22016, max_position_embeddings=32768, sliding_window=4096, max_window_layers=28), **defaults, **hf}
  config = plain_in(family, hf)
  slides = [bool(hf.get('use_sliding_window')) and hf['sliding_window'] is not None and number >= hf['max_window_layers']
            for number in range(config['layers'])]
  return {**config, **kinds_in(hf, config['layers'], [['full_attention', 'sliding_attention'][one] for one in slides])}


def _qwen_out(config: Config) -> dict:
  kinds = kinds_out(config)
  first = next((number for number, kind in enumerate(kinds['layer_types']) if kind == 'sliding_attention'), config['layers'])
  return dict(plain_out(config), **kinds, use_sliding_window=config['window'] is not None, max_window_layers=first)


def _qwen2_in(hf: Config) -> dict:
  return dict(_qwen_in('Qwen2', hf), attention_bias='qkv')


def _qwen3_in(hf: Config) -> dict:
  return dict(_qwen_in('Qwen3', hf, head_dim=128), qk_norm=True, attention_bias=hf.get('attention_bias', False))


def _qwen3_out(config: Config) -> dict:
  return dict(_qwen_out(config), attention_bias=config['attention_bias'] is True)


def _phi3_in(hf: Config) -> dict:
  hf = {**dict(vocab_size=32064, hidden_size=3072, intermediate_size=8192, rms_norm_eps=1e-5, max_position_embeddings=4096,
               original_max_position_embeddings=4096), **hf}
  config, window = plain_in('Phi-3', hf), hf.get('sliding_window')
  scaling = config['rotary'].get('scaling')
  if scaling is not None and scaling['kind'] == 'longrope':      # past it the rates of all tokens change with the length of the text
    config['max_length'] = scaling['original']
  return dict(config, pattern=('global',) if window is None else ('local',), window=window)


def _phi3_out(config: Config) -> dict:
  scaling = dict(dict(config['rotary'])['scaling'] or ())
  out = dict(_window_out(config), resid_pdrop=config['dropout'], embd_pdrop=config['dropout'],
             original_max_position_embeddings=scaling.get('original', config['max_length']))
  return dict(out, max_position_embeddings=scaling.get('longest', config['max_length']))


def _experts_in(hf: Config, width: int, **defaults) -> dict:
  count = hf.get('num_local_experts') or hf.get('num_experts') or defaults['count']
  return dict(count=count, chosen=hf.get('num_experts_per_tok', defaults['chosen']), width=width, normed=defaults['normed'])


def _experts_out(config: Config) -> dict[str, Any]:
  about = dict(config['experts'] or dict(count=1, chosen=1, width=1, normed=True))
  return dict(num_local_experts=about['count'], num_experts_per_tok=about['chosen'], moe_intermediate_size=about['width'],
              norm_topk_prob=about['normed'])


def _mixtral_in(hf: Config) -> dict:
  config = plain_in('Mixtral', hf, rms_norm_eps=1e-5, intermediate_size=14336, num_key_value_heads=8, max_position_embeddings=131072)
  window = hf.get('sliding_window')
  return dict(config, pattern=('global',) if window is None else ('local',), window=window, mlps=('experts',),
              experts=_experts_in(hf, config['mlp_width'], count=8, chosen=2, normed=True))


def _mixtral_out(config: Config) -> dict:
  out = {**_window_out(config), **_experts_out(config)}
  return {key: value for key, value in out.items() if key not in ('moe_intermediate_size', 'norm_topk_prob')}


def _qwen3_moe_in(hf: Config) -> dict:
  hf = {**dict(vocab_size=151936, hidden_size=2048, intermediate_size=6144, num_hidden_layers=24, num_key_value_heads=4,
               max_position_embeddings=32768), **hf}
  config = plain_in('Qwen3-MoE', hf)
  step, dense = hf.get('decoder_sparse_step', 1), hf.get('mlp_only_layers') or ()
  mlps = ['experts' if number not in dense and (number + 1) % step == 0 else 'dense' for number in range(config['layers'])]
  window = hf.get('sliding_window', 4096) if hf.get('use_sliding_window') else None
  experts = _experts_in(hf, hf.get('moe_intermediate_size', 768), count=128, chosen=8, normed=hf.get('norm_topk_prob', False))
  return dict(config, qk_norm=True, attention_bias=hf.get('attention_bias', False), mlps=period(mlps),
              experts=experts if 'experts' in mlps else None, pattern=('global',) if window is None else ('local',), window=window)


def _qwen3_moe_out(config: Config) -> dict:
  mlps = along(config['mlps'], config['layers'])
  return dict(_window_out(config), **_experts_out(config), attention_bias=config['attention_bias'] is True, decoder_sparse_step=1,
              mlp_only_layers=[number for number, kind in enumerate(mlps) if kind == 'dense'], use_sliding_window=config['window'] is not None)


def _linear(ours: str, theirs: str):
  return kernel_and_bias(ours, f'model.layers.{{layer}}.{theirs}', turned=True)


EMBED = (Row('embed/tokens', 'model.embed_tokens.weight'), *norm('norm', 'model.norm'), *head('lm_head'))
NORMS = (*norm('attention_norm', 'model.layers.{layer}.input_layernorm'), *norm('mlp_norm', 'model.layers.{layer}.post_attention_layernorm'))
ATTENTION = tuple(row for name in 'qkvo' for row in _linear(f'attention/{name}', f'self_attn.{name}_proj'))
QK_NORMS = tuple(row for name in 'qk' for row in norm(f'attention/{name}_norm', f'model.layers.{{layer}}.self_attn.{name}_norm'))
MLP = tuple(row for name in ('gate', 'up', 'down') for row in _linear(f'mlp/{name}', f'mlp.{name}_proj'))
ROWS = (*EMBED, *NORMS, *ATTENTION, *MLP)


def _experts(router: str, names: dict[str, str]) -> tuple[Row, ...]:
  router = Row('mlp/router/kernel', f'model.layers.{{layer}}.{router}.weight', turned=True)
  return router, *(Row(f'mlp/experts/{ours}/kernel', f'model.layers.{{layer}}.{theirs}.weight', turned=True) for ours, theirs in names.items())


def _fused_qkv(number: int):
  """q, k or v of one matrix: all queries, then all keys, then all values."""
  def cut(config):
    sizes = [config['head_dim'] * config[heads] for heads in ('heads', 'kv_heads', 'kv_heads')]
    return Cut(sum(sizes), sum(sizes[:number]), sizes[number])
  return cut


def _half(number: int):
  return lambda config: Cut(2 * config['mlp_width'], number * config['mlp_width'], config['mlp_width'])


PHI3_ROWS = (
    *EMBED, *NORMS, *_linear('attention/o', 'self_attn.o_proj'), *_linear('mlp/down', 'mlp.down_proj'),
    *(Row(f'attention/{name}/kernel', 'model.layers.{layer}.self_attn.qkv_proj.weight', True, _fused_qkv(number)) for number, name in enumerate('qkv')),
    *(Row(f'mlp/{name}/kernel', 'model.layers.{layer}.mlp.gate_up_proj.weight', True, _half(number)) for number, name in enumerate(('gate', 'up'))))

LLAMA = Family('llama', _llama_in, _llama_out, ROWS, 'model.')
MISTRAL = Family('mistral', _mistral_in, _window_out, ROWS, 'model.')
QWEN2 = Family('qwen2', _qwen2_in, _qwen_out, ROWS, 'model.')
QWEN3 = Family('qwen3', _qwen3_in, _qwen3_out, (*ROWS, *QK_NORMS), 'model.')
PHI3 = Family('phi3', _phi3_in, _phi3_out, PHI3_ROWS, 'model.')
MIXTRAL = Family('mixtral', _mixtral_in, _mixtral_out, (*EMBED, *NORMS, *ATTENTION, *_experts('block_sparse_moe.gate', {
    name: f'block_sparse_moe.experts.{{expert}}.{theirs}' for name, theirs in dict(gate='w1', up='w3', down='w2').items()})), 'model.')
QWEN3_MOE = Family('qwen3_moe', _qwen3_moe_in, _qwen3_moe_out, (*ROWS, *QK_NORMS, *_experts('mlp.gate', {
    name: f'mlp.experts.{{expert}}.{name}_proj' for name in ('gate', 'up', 'down')})), 'model.')
