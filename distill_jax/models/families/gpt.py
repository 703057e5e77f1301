"""GPT-2, GPT-Neo, GPT-J, GPT-NeoX (Pythia) and OPT: layer norms, biases, plain MLPs."""
from distill_jax.models.families.rows import (Config, Cut, Family, Row, activation, activation_out, along, head, kernel_and_bias, norm,
                                              period, refuse, rope_in, rope_out)

BUFFERS = (r'.*\.(attn|attention)(\.attention)?\.(masked_)?bias', r'.*\.rotary_emb\.inv_freq')


def _plain(hf: Config) -> dict:
  """What all of them have."""
  return dict(norm='layer', positions='learned', gated=False, attention_bias=True, mlp_bias=True, tied=hf.get('tie_word_embeddings', True))


def _gpt2_in(hf: Config) -> dict:
  refuse('GPT-2', hf, dict(scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False, add_cross_attention=False))
  width = hf.get('n_embd', 768)
  return dict(
      _plain(hf), vocab_size=hf.get('vocab_size', 50257), width=width, layers=hf.get('n_layer', 12), heads=hf.get('n_head', 12),
      mlp_width=hf.get('n_inner') or 4 * width, norm_eps=hf.get('layer_norm_epsilon', 1e-5), max_length=hf.get('n_positions', 1024),
      activation=activation('GPT-2', hf.get('activation_function', 'gelu_new')))


def _gpt2_out(config: Config) -> dict:
  rate = config['dropout']
  return dict(
      vocab_size=config['vocab_size'], n_embd=config['width'], n_layer=config['layers'], n_head=config['heads'],
      n_inner=config['mlp_width'], n_positions=config['max_length'], layer_norm_epsilon=config['norm_eps'],
      activation_function=activation_out(config['activation']), tie_word_embeddings=config['tied'],
      resid_pdrop=rate, embd_pdrop=rate, attn_pdrop=0.0)


def _third(number: int):
  """q, k or v of three of one width, side by side."""
  return lambda config: Cut(3 * config['width'], number * config['width'], config['width'])


GPT2 = Family('gpt2', _gpt2_in, _gpt2_out, (
    Row('embed/tokens', 'transformer.wte.weight'), Row('embed/positions', 'transformer.wpe.weight'), *norm('norm', 'transformer.ln_f'),
    *head('lm_head'), *norm('attention_norm', 'transformer.h.{layer}.ln_1'), *norm('mlp_norm', 'transformer.h.{layer}.ln_2'),
    *(row for number, name in enumerate('qkv')
      for row in kernel_and_bias(f'attention/{name}', 'transformer.h.{layer}.attn.c_attn', cut=_third(number))),
    *kernel_and_bias('attention/o', 'transformer.h.{layer}.attn.c_proj'),
    *kernel_and_bias('mlp/up', 'transformer.h.{layer}.mlp.c_fc'), *kernel_and_bias('mlp/down', 'transformer.h.{layer}.mlp.c_proj'),
), 'transformer.', BUFFERS)


def _neo_in(hf: Config) -> dict:
  kinds = hf.get('attention_layers') or [kind for kinds, times in hf['attention_types'] for _ in range(times) for kind in kinds]
  width = hf.get('hidden_size', 2048)
  return dict(
      _plain(hf), vocab_size=hf.get('vocab_size', 50257), width=width, layers=hf.get('num_layers', 24), heads=hf.get('num_heads', 16),
      mlp_width=hf.get('intermediate_size') or 4 * width, norm_eps=hf.get('layer_norm_epsilon', 1e-5),
      max_length=hf.get('max_position_embeddings', 2048), activation=activation('GPT-Neo', hf.get('activation_function', 'gelu_new')),
      attention_bias='o', query_scale=1.0, pattern=period(kinds), window=hf.get('window_size', 256) if 'local' in kinds else None)


def _neo_out(config: Config) -> dict:
  kinds, rate = along(config['pattern'], config['layers']), config['dropout']
  return dict(
      vocab_size=config['vocab_size'], hidden_size=config['width'], num_layers=config['layers'], num_heads=config['heads'],
      intermediate_size=config['mlp_width'], layer_norm_epsilon=config['norm_eps'], max_position_embeddings=config['max_length'],
      activation_function=activation_out(config['activation']), tie_word_embeddings=config['tied'], attention_types=[[kinds, 1]],
      attention_layers=kinds, window_size=config['window'] or 256, resid_dropout=rate, embed_dropout=rate, attention_dropout=0.0)


GPT_NEO = Family('gpt_neo', _neo_in, _neo_out, (
    Row('embed/tokens', 'transformer.wte.weight'), Row('embed/positions', 'transformer.wpe.weight'), *norm('norm', 'transformer.ln_f'),
    *head('lm_head'), *norm('attention_norm', 'transformer.h.{layer}.ln_1'), *norm('mlp_norm', 'transformer.h.{layer}.ln_2'),
    *(row for name in 'qkv'
      for row in kernel_and_bias(f'attention/{name}', f'transformer.h.{{layer}}.attn.attention.{name}_proj', turned=True)),
    *kernel_and_bias('attention/o', 'transformer.h.{layer}.attn.attention.out_proj', turned=True),
    *kernel_and_bias('mlp/up', 'transformer.h.{layer}.mlp.c_fc', turned=True),
    *kernel_and_bias('mlp/down', 'transformer.h.{layer}.mlp.c_proj', turned=True),
), 'transformer.', BUFFERS)


def _gptj_in(hf: Config) -> dict:
  width, heads = hf.get('n_embd', 4096), hf.get('n_head', 16)
  turned = hf.get('rotary_dim', 64)
  if turned is None:
    raise ValueError('GPT-J: config.json says rotary_dim=null; give the number of entries of a head that turn')
  return dict(
      _plain(hf), vocab_size=hf.get('vocab_size', 50400), width=width, layers=hf.get('n_layer', 28), heads=heads,
      mlp_width=hf.get('n_inner') or 4 * width, norm_eps=hf.get('layer_norm_epsilon', 1e-5), max_length=hf.get('n_positions', 2048),
      activation=activation('GPT-J', hf.get('activation_function', 'gelu_new')), attention_bias=False, positions='rope',
      rotary=dict(share=turned / (width // heads), interleaved=True), parallel='one_norm', tied=hf.get('tie_word_embeddings', False),
      head_bias=not hf.get('tie_word_embeddings', False))


def _gptj_out(config: Config) -> dict:
  from distill_jax.models import rotary
  return dict(_gpt2_out(config), rotary_dim=rotary.turned(config))


GPT_J = Family('gptj', _gptj_in, _gptj_out, (
    Row('embed/tokens', 'transformer.wte.weight'), *norm('norm', 'transformer.ln_f'), *head('lm_head'),
    *norm('attention_norm', 'transformer.h.{layer}.ln_1'),
    *(row for name in 'qkv' for row in kernel_and_bias(f'attention/{name}', f'transformer.h.{{layer}}.attn.{name}_proj', turned=True)),
    *kernel_and_bias('attention/o', 'transformer.h.{layer}.attn.out_proj', turned=True),
    *kernel_and_bias('mlp/up', 'transformer.h.{layer}.mlp.fc_in', turned=True),
    *kernel_and_bias('mlp/down', 'transformer.h.{layer}.mlp.fc_out', turned=True),
), 'transformer.', BUFFERS)


def _neox_in(hf: Config) -> dict:
  older = dict(rope_theta=hf.get('rotary_emb_base', 10000.0), partial_rotary_factor=hf.get('rotary_pct', 0.25))
  theta, rotary = rope_in('GPT-NeoX', {**older, **hf})
  return dict(
      _plain(hf), vocab_size=hf.get('vocab_size', 50432), width=hf.get('hidden_size', 6144), layers=hf.get('num_hidden_layers', 44),
      heads=hf.get('num_attention_heads', 64), mlp_width=hf.get('intermediate_size', 24576), norm_eps=hf.get('layer_norm_eps', 1e-5),
      max_length=hf.get('max_position_embeddings', 2048), activation=activation('GPT-NeoX', hf.get('hidden_act', 'gelu')),
      attention_bias=hf.get('attention_bias', True), positions='rope', rope_theta=theta, rotary=rotary,
      parallel='two_norms' if hf.get('use_parallel_residual', True) else 'none', tied=hf.get('tie_word_embeddings', False))


def _neox_out(config: Config) -> dict:
  share = dict(config['rotary'])['share']
  return dict(
      vocab_size=config['vocab_size'], hidden_size=config['width'], num_hidden_layers=config['layers'],
      num_attention_heads=config['heads'], intermediate_size=config['mlp_width'], layer_norm_eps=config['norm_eps'],
      max_position_embeddings=config['max_length'], hidden_act=activation_out(config['activation']),
      attention_bias=config['attention_bias'] is True, use_parallel_residual=config['parallel'] == 'two_norms',
      tie_word_embeddings=config['tied'], rope_parameters=dict(rope_out(config), partial_rotary_factor=share),
      hidden_dropout=config['dropout'], attention_dropout=0.0)


def _by_head(number: int):
  """q, k or v of heads that hold theirs side by side."""
  def cut(config):
    width = config['head_dim']
    return Cut(3 * width * config['heads'], number * width, width, 3 * width, config['heads'])
  return cut


GPT_NEOX = Family('gpt_neox', _neox_in, _neox_out, (
    Row('embed/tokens', 'gpt_neox.embed_in.weight'), *norm('norm', 'gpt_neox.final_layer_norm'), *head('embed_out'),
    *norm('attention_norm', 'gpt_neox.layers.{layer}.input_layernorm'),
    *norm('mlp_norm', 'gpt_neox.layers.{layer}.post_attention_layernorm'),
    *(row for number, name in enumerate('qkv')
      for row in kernel_and_bias(f'attention/{name}', 'gpt_neox.layers.{layer}.attention.query_key_value', turned=True, cut=_by_head(number))),
    *kernel_and_bias('attention/o', 'gpt_neox.layers.{layer}.attention.dense', turned=True),
    *kernel_and_bias('mlp/up', 'gpt_neox.layers.{layer}.mlp.dense_h_to_4h', turned=True),
    *kernel_and_bias('mlp/down', 'gpt_neox.layers.{layer}.mlp.dense_4h_to_h', turned=True),
), 'gpt_neox.', BUFFERS)


def _opt_in(hf: Config) -> dict:
  width = hf.get('hidden_size', 768)
  refuse('OPT', hf, dict(do_layer_norm_before=True, enable_bias=True, layer_norm_elementwise_affine=True, _remove_final_layer_norm=False))
  if (hf.get('word_embed_proj_dim') or width) != width:
    raise ValueError(f'OPT: config.json says word_embed_proj_dim={hf["word_embed_proj_dim"]} beside hidden_size={width}; '
                     'only embeddings as wide as the model can be read (all published sizes but 350M have them)')
  return dict(
      _plain(hf), vocab_size=hf.get('vocab_size', 50272), width=width, layers=hf.get('num_hidden_layers', 12),
      heads=hf.get('num_attention_heads', 12), mlp_width=hf.get('ffn_dim', 3072), max_length=hf.get('max_position_embeddings', 2048),
      position_offset=2, activation=activation('OPT', hf.get('activation_function', 'relu')))


def _opt_out(config: Config) -> dict:
  return dict(
      vocab_size=config['vocab_size'], hidden_size=config['width'], word_embed_proj_dim=config['width'],
      num_hidden_layers=config['layers'], num_attention_heads=config['heads'], ffn_dim=config['mlp_width'],
      max_position_embeddings=config['max_length'], activation_function=activation_out(config['activation']),
      tie_word_embeddings=config['tied'], do_layer_norm_before=True, dropout=config['dropout'], attention_dropout=0.0)


OPT = Family('opt', _opt_in, _opt_out, (
    Row('embed/tokens', 'model.decoder.embed_tokens.weight'), Row('embed/positions', 'model.decoder.embed_positions.weight'),
    *norm('norm', 'model.decoder.final_layer_norm'), *head('lm_head'),
    *norm('attention_norm', 'model.decoder.layers.{layer}.self_attn_layer_norm'),
    *norm('mlp_norm', 'model.decoder.layers.{layer}.final_layer_norm'),
    *(row for name in 'qkv'
      for row in kernel_and_bias(f'attention/{name}', f'model.decoder.layers.{{layer}}.self_attn.{name}_proj', turned=True)),
    *kernel_and_bias('attention/o', 'model.decoder.layers.{layer}.self_attn.out_proj', turned=True),
    *kernel_and_bias('mlp/up', 'model.decoder.layers.{layer}.fc1', turned=True),
    *kernel_and_bias('mlp/down', 'model.decoder.layers.{layer}.fc2', turned=True),
), 'model.')
