"""Gemma, Gemma 2 and the text side of Gemma 3: scaled embeddings, norms of 1 + weight, from the second on caps and norms behind branches."""
from distill_jax.models.families.llama import ATTENTION, EMBED, MLP, NORMS, QK_NORMS, ROWS, kinds_in, kinds_out, plain_in, plain_out
from distill_jax.models.families.rows import Config, Family, norm, refuse, rope_in, rope_out


def _gemma_in(family: str, hf: Config, **defaults) -> dict:
  """What all three say."""
  refuse(family, {**hf, 'use_bidirectional_attention': hf.get('use_bidirectional_attention') or False}, dict(use_bidirectional_attention=False))
  hf = {**dict(head_dim=256, tie_word_embeddings=True, hidden_act='gelu_pytorch_tanh', max_position_embeddings=8192), **defaults, **hf}
  hf['hidden_act'] = hf.get('hidden_activation') or hf['hidden_act']
  if hf['hidden_act'] == 'gelu':      # the first files say so, their models were trained with the other
    hf['hidden_act'] = 'gelu_pytorch_tanh'
  config = plain_in(family, hf)
  return dict(config, norm_offset=1.0, embed_scale=config['width'] ** 0.5, attention_bias=hf.get('attention_bias', False))


def _gemma1_in(hf: Config) -> dict:
  return _gemma_in('Gemma', hf, vocab_size=256000, hidden_size=3072, intermediate_size=24576, num_hidden_layers=28, num_attention_heads=16,
                   num_key_value_heads=16)


def _gemma_out(config: Config) -> dict:
  act = {'gelu_tanh': 'gelu_pytorch_tanh'}.get(config['activation'], config['activation'])
  return dict(plain_out(config), attention_bias=config['attention_bias'] is True, hidden_act=act)


def _second_in(family: str, hf: Config, cap: float | None, head_cap: float | None, otherwise, **defaults) -> dict:
  """What Gemma 2 and 3 say beside that."""
  hf = {**dict(sliding_window=4096), **hf}
  config = _gemma_in(family, hf, **defaults)
  return {**config, **kinds_in(hf, config['layers'], [otherwise(number) for number in range(config['layers'])]), 'post_norms': True,
          'query_scale': hf.get('query_pre_attn_scalar', 256) ** -0.5, 'score_cap': hf.get('attn_logit_softcapping', cap),
          'head_cap': hf.get('final_logit_softcapping', head_cap)}


def _second_out(config: Config) -> dict:
  out = _gemma_out(config)
  scalar = config['head_dim'] if config['query_scale'] is None else round(config['query_scale'] ** -2)
  return dict(out, **kinds_out(config), hidden_activation=out.pop('hidden_act'), query_pre_attn_scalar=scalar,
              attn_logit_softcapping=config['score_cap'], final_logit_softcapping=config['head_cap'])


def _gemma2_in(hf: Config) -> dict:
  return _second_in('Gemma 2', hf, 50.0, 30.0, lambda number: ('sliding_attention', 'full_attention')[number % 2], vocab_size=256000,
                    hidden_size=2304, intermediate_size=9216, num_hidden_layers=26, num_attention_heads=8, num_key_value_heads=4)


def _gemma3_in(hf: Config) -> dict:
  every = hf.get('sliding_window_pattern', hf.get('_sliding_window_pattern', 6))
  rope = hf.get('rope_parameters') or dict(
      full_attention=dict(rope_theta=hf.get('rope_theta', 1000000.0), **(hf.get('rope_scaling') or {})),
      sliding_attention=dict(rope_theta=hf.get('rope_local_base_freq', 10000.0)))
  plain = {key: value for key, value in hf.items() if key not in ('rope_parameters', 'rope_scaling', 'rope_theta')}
  config = _second_in(
      'Gemma 3', plain, None, None, lambda number: 'sliding_attention' if (number + 1) % every else 'full_attention', vocab_size=262208,
      hidden_size=2304, intermediate_size=9216, num_hidden_layers=26, num_attention_heads=8, num_key_value_heads=4,
      max_position_embeddings=131072)
  theta, rotary = rope_in('Gemma 3', dict(rope_parameters=rope.get('full_attention')), theta=1000000.0)
  local, more = rope_in('Gemma 3', dict(rope_parameters=rope.get('sliding_attention')))
  if 'scaling' in more:
    raise ValueError('Gemma 3: config.json scales the rotary positions of sliding_attention; only those of full_attention can be scaled')
  return dict(config, qk_norm=True, rope_theta=theta, rotary=dict(rotary, local_theta=local))


def _gemma3_out(config: Config) -> dict:
  local = dict(config['rotary'])['local_theta']
  return dict(_second_out(config), rope_parameters=dict(
      full_attention=rope_out(config), sliding_attention=dict(rope_type='default', rope_theta=local)))


SECOND = (*EMBED, *ATTENTION, *MLP, *NORMS[:2], *(row for ours, theirs in dict(
    attention_post_norm='post_attention', mlp_norm='pre_feedforward', mlp_post_norm='post_feedforward').items()
    for row in norm(ours, f'model.layers.{{layer}}.{theirs}_layernorm')))

GEMMA = Family('gemma', _gemma1_in, _gemma_out, ROWS, 'model.')
GEMMA2 = Family('gemma2', _gemma2_in, _second_out, SECOND, 'model.')
GEMMA3 = Family('gemma3_text', _gemma3_in, _gemma3_out, (*SECOND, *QK_NORMS), 'model.')
