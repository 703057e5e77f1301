"""The T5 family of Hugging Face checkpoints: T5 v1.0 and v1.1, Flan-T5, CodeT5 (all T5ForConditionalGeneration)."""
from typing import Sequence

from distill_jax.models.families.rows import Config, Family, Row, refuse

FORWARD = {('relu', False): 'relu', ('gelu_tanh', True): 'gated-gelu', ('silu', True): 'gated-silu', ('gelu', False): 'gelu'}


def _in(hf: Config) -> dict:
  refuse('T5', hf, dict(is_encoder_decoder=True))
  said = hf.get('feed_forward_proj', 'relu')
  kind = next((kind for kind, name in FORWARD.items() if name == said), None)
  if kind is None:
    raise ValueError(f'T5: config.json says feed_forward_proj={said!r}; known are {", ".join(FORWARD.values())}')
  tied = hf.get('tie_word_embeddings', True)
  return dict(
      vocab_size=hf.get('vocab_size', 32128), width=hf.get('d_model', 512), layers=hf.get('num_layers', 6),
      decoder_layers=hf.get('num_decoder_layers') or hf.get('num_layers', 6), heads=hf.get('num_heads', 8), head_dim=hf.get('d_kv', 64),
      mlp_width=hf.get('d_ff', 2048), norm_eps=hf.get('layer_norm_epsilon', 1e-6), activation=kind[0], gated=kind[1],
      buckets=hf.get('relative_attention_num_buckets', 32), furthest=hf.get('relative_attention_max_distance', 128), tied=tied,
      scaled=hf.get('scale_decoder_outputs', tied), start_id=_start(hf))


def _start(hf: Config) -> int:
  start = hf.get('decoder_start_token_id')
  return start if start is not None else hf.get('pad_token_id') or 0


def _more(config: dict, held, load) -> dict:
  """transformers 5 writes tie_word_embeddings=true beside the untied head of v1.1: a head in the file is then one."""
  return {**config, 'tied': 'lm_head.weight' not in held()} if config['tied'] and not config['scaled'] else config


def _out(config: Config) -> dict:
  kind = FORWARD.get((config['activation'], config['gated']))
  if kind is None:
    raise ValueError(f'T5 has no activation={config["activation"]!r} with gated={config["gated"]}; it has {", ".join(FORWARD.values())}')
  return dict(
      vocab_size=config['vocab_size'], d_model=config['width'], num_layers=config['layers'], num_decoder_layers=config['decoder_layers'],
      num_heads=config['heads'], d_kv=config['head_dim'], d_ff=config['mlp_width'], layer_norm_epsilon=config['norm_eps'],
      feed_forward_proj=kind, relative_attention_num_buckets=config['buckets'], relative_attention_max_distance=config['furthest'],
      tie_word_embeddings=config['tied'], scale_decoder_outputs=config['scaled'], decoder_start_token_id=config['start_id'],
      dropout_rate=config['dropout'], is_encoder_decoder=True)


def _layers(config: Config, ours: str) -> int:
  """How many blocks a weight is stacked over."""
  return config['layers' if ours.startswith('layers/encoder/') else 'decoder_layers']


def _block(side: str, mlp: int) -> Sequence[Row]:
  """Rows of the blocks of one side; mlp: which of their layers that is."""
  ours, theirs = f'layers/{side}/', side + '.block.{layer}.layer.'
  linear = lambda name, at: Row(f'{ours}{name}/kernel', f'{theirs}{at}.weight', turned=True)
  return (
      *(linear(f'attention/{name}', f'0.SelfAttention.{name}') for name in 'qkvo'),
      Row(ours + 'attention_norm/scale', theirs + '0.layer_norm.weight'),
      linear('mlp/gate', f'{mlp}.DenseReluDense.wi_0'), linear('mlp/up', f'{mlp}.DenseReluDense.{{up}}'), linear('mlp/down', f'{mlp}.DenseReluDense.wo'),
      Row(ours + 'mlp_norm/scale', f'{theirs}{mlp}.layer_norm.weight'),
      *((*(linear(f'cross/{name}', f'1.EncDecAttention.{name}') for name in 'qkvo'),
         Row(ours + 'cross_norm/scale', theirs + '1.layer_norm.weight')) if side == 'decoder' else ()),
  )


T5 = Family(
    't5', _in, _out, (
        Row('embed/tokens', 'shared.weight'), Row('head/kernel', 'lm_head.weight', turned=True), *_block('encoder', 1), *_block('decoder', 2),
        *(row for side in ('encoder', 'decoder') for row in (
            Row(f'{side}/bias', f'{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight'),
            Row(f'{side}/norm/scale', f'{side}.final_layer_norm.weight'))),
    ), '', (r'(en|de)coder\.embed_tokens\.weight', r'decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight'),
    model='encoder_decoder', layers=_layers, words=lambda config: dict(up='wi_1' if config['gated'] else 'wi'), more=_more)
