"""The BERT families of Hugging Face checkpoints: BERT (MiniLM too), RoBERTa, DistilBERT, bare, with a masked-LM head, with classes; and
what sentence-transformers lays beside them."""
from typing import Any, Mapping, Sequence

from distill_jax.models.families.rows import Config, Family, Row, activation, activation_out, kernel_and_bias, norm, refuse

BARE, LM, CLASSES = dict(lm_head=False, classes=None), dict(lm_head=True, pooler=None, classes=None), dict(lm_head=False)
OLD = {'LayerNorm.gamma': 'LayerNorm.weight', 'LayerNorm.beta': 'LayerNorm.bias'}      # as in the first published files
POOLING = {'pooling_mode_mean_tokens': 'mean', 'pooling_mode_cls_token': 'cls', 'pooling_mode_max_tokens': 'max'}


def _labels(hf: Config) -> int:
  return len(hf['id2label']) if hf.get('id2label') else hf.get('num_labels', 2)


def _heads(kind: Mapping[str, Any], hf: Config, pooler: str) -> dict:
  return dict(lm_head=kind['lm_head'], pooler=pooler if kind is CLASSES else None, classes=_labels(hf) if kind is CLASSES else None)


def _labels_out(config: Config) -> dict:
  count = config['classes']
  return {} if count is None else dict(id2label={str(i): f'LABEL_{i}' for i in range(count)}, label2id={f'LABEL_{i}': i for i in range(count)})


def _bert_in(name: str, hf: Config, *, offset: int) -> dict:
  refuse(name, hf, dict(position_embedding_type='absolute', is_decoder=False, add_cross_attention=False))
  width = hf.get('hidden_size', 768)
  return dict(
      vocab_size=hf.get('vocab_size', 30522), width=width, layers=hf.get('num_hidden_layers', 12), heads=hf.get('num_attention_heads', 12),
      mlp_width=hf.get('intermediate_size', 3072), max_length=hf.get('max_position_embeddings', 512) - offset, offset=offset,
      types=hf.get('type_vocab_size', 2), norm_eps=hf.get('layer_norm_eps', 1e-12), activation=activation(name, hf.get('hidden_act', 'gelu')))


def _roberta_in(hf: Config) -> dict:
  refuse('RoBERTa', hf, dict(pad_token_id=1, hidden_act='gelu'))      # positions begin after the padding id; its head has a gelu of its own
  return _bert_in('RoBERTa', hf, offset=2)


def _distilbert_in(hf: Config) -> dict:
  return dict(
      vocab_size=hf.get('vocab_size', 30522), width=hf.get('dim', 768), layers=hf.get('n_layers', 6), heads=hf.get('n_heads', 12),
      mlp_width=hf.get('hidden_dim', 3072), max_length=hf.get('max_position_embeddings', 512), offset=0, types=0, norm_eps=1e-12,
      activation=activation('DistilBERT', hf.get('activation', 'gelu')))


def _bert_out(config: Config) -> dict:
  if not config['types']:
    raise ValueError('BERT and RoBERTa have types of tokens, this config none (types=0): take types=2, or DistilBERT\'s norm_eps=1e-12')
  return dict(
      vocab_size=config['vocab_size'], hidden_size=config['width'], num_hidden_layers=config['layers'], num_attention_heads=config['heads'],
      intermediate_size=config['mlp_width'], max_position_embeddings=config['max_length'] + config['offset'], type_vocab_size=config['types'],
      layer_norm_eps=config['norm_eps'], hidden_act=activation_out(config['activation']), hidden_dropout_prob=config['dropout'],
      attention_probs_dropout_prob=0.0, **_labels_out(config))


def _distilbert_out(config: Config) -> dict:
  if config['norm_eps'] != 1e-12:
    raise ValueError(f'DistilBERT has norm_eps=1e-12 only, this config {config["norm_eps"]}: take types=2 (BERT), or 1e-12')
  return dict(
      vocab_size=config['vocab_size'], dim=config['width'], n_layers=config['layers'], n_heads=config['heads'], hidden_dim=config['mlp_width'],
      max_position_embeddings=config['max_length'], activation=activation_out(config['activation']), dropout=config['dropout'],
      attention_dropout=0.0, **_labels_out(config))


def _sentence(config: dict, held, load) -> dict:
  """What sentence-transformers says in modules.json and its pooling directory; and the pooler, which some files lack."""
  if not config['lm_head'] and config['classes'] is None and any(name.endswith('pooler.dense.weight') for name in held()):
    config = {**config, 'pooler': 'tanh'}
  modules = load('modules.json')
  if modules is None:
    return config
  sentence, normalise = None, False
  for module in modules:
    kind = module['type'].rsplit('.', 1)[-1]
    if kind == 'Pooling':
      sentence = _pooling(load(f'{module["path"]}/config.json') or {})
    elif kind == 'Normalize':
      normalise = True
    elif kind != 'Transformer':
      raise ValueError(f'modules.json: a module of type {module["type"]!r} cannot be read; Transformer, Pooling and Normalize can')
  return {**config, 'sentence': sentence, 'normalise': normalise and sentence is not None}


def _pooling(said: Mapping[str, Any]) -> str:
  """Older files have a flag a mode, newer ones name it."""
  asked = [name for name, value in said.items() if name.startswith('pooling_mode_') and value is True]
  modes = [POOLING.get(name, name) for name in asked] or [said.get('pooling_mode', 'mean')]
  if len(modes) != 1 or modes[0] not in POOLING.values():
    raise ValueError(f'the pooling config of sentence-transformers asks for {", ".join(modes)}; one of {", ".join(POOLING)} can be read')
  return modes[0]


def _table(base: str, names: Mapping[str, str], *, types: bool) -> Sequence[Row]:
  """Rows of the tables and blocks. names: theirs below a block, by ours."""
  block = base + names['block'] + '.{layer}.'
  tables = dict(tokens='word', positions='position', **(dict(types='token_type') if types else {}))
  return (
      *(Row(f'embed/{ours}', f'{base}embeddings.{theirs}_embeddings.weight') for ours, theirs in tables.items()),
      *norm('embed/norm', base + 'embeddings.LayerNorm'),
      *(row for ours in ('attention/q', 'attention/k', 'attention/v', 'attention/o', 'mlp/up', 'mlp/down')
        for row in kernel_and_bias(f'layers/{ours}', block + names[ours], turned=True)),
      *(row for ours in ('attention_norm', 'mlp_norm') for row in norm(f'layers/{ours}', block + names[ours])),
  )


BERT_BLOCK = {
    'block': 'encoder.layer', 'attention/q': 'attention.self.query', 'attention/k': 'attention.self.key', 'attention/v': 'attention.self.value',
    'attention/o': 'attention.output.dense', 'mlp/up': 'intermediate.dense', 'mlp/down': 'output.dense',
    'attention_norm': 'attention.output.LayerNorm', 'mlp_norm': 'output.LayerNorm'}
DISTILBERT_BLOCK = {
    'block': 'transformer.layer', 'attention/q': 'attention.q_lin', 'attention/k': 'attention.k_lin', 'attention/v': 'attention.v_lin',
    'attention/o': 'attention.out_lin', 'mlp/up': 'ffn.lin1', 'mlp/down': 'ffn.lin2', 'attention_norm': 'sa_layer_norm',
    'mlp_norm': 'output_layer_norm'}


def _lm(dense: str, normed: str, bias: str) -> Sequence[Row]:
  return (*kernel_and_bias('transform', dense, turned=True), *norm('transform/norm', normed), Row('head/bias', bias))


def _families(title: str, model_type: str, read, write, block, *, types: bool, pooler: str, heads: Mapping[str, Sequence[Row]]) -> dict[str, Family]:
  """The three architectures of one model. heads: rows of theirs by the end of the name of the architecture."""
  made = {}
  for end, kind in (('Model', BARE), ('ForMaskedLM', LM), ('ForSequenceClassification', CLASSES)):
    base = '' if kind is BARE else f'{model_type}.'
    skipped = (r'(.*\.)?embeddings\.position_ids', r'(bert|roberta)\.pooler\..*', r'(cls\.predictions\.decoder|lm_head\.decoder|vocab_projector)\.(weight|bias)',
               r'cls\.seq_relationship\..*', *((r'(cls|lm_head|vocab_.*)\..*',) if kind is BARE else ()))
    free = ('sentence', 'normalise', *(('pooler',) if kind is BARE and heads[end] else ()))
    made[title + end] = Family(
        model_type, lambda hf, kind=kind: {**read(hf), **_heads(kind, hf, pooler)}, write, (*_table(base, block, types=types), *heads[end]), base, skipped,
        model='encoder', layers=lambda config, ours: config['layers'], more=_sentence, free=free, renamed=OLD)
  return made


BERT = _families(
    'Bert', 'bert', lambda hf: _bert_in('BERT', hf, offset=0), _bert_out, BERT_BLOCK, types=True, pooler='tanh', heads={
        'Model': kernel_and_bias('pooler', 'pooler.dense', turned=True),
        'ForMaskedLM': _lm('cls.predictions.transform.dense', 'cls.predictions.transform.LayerNorm', 'cls.predictions.bias'),
        'ForSequenceClassification': (*kernel_and_bias('pooler', 'bert.pooler.dense', turned=True), *kernel_and_bias('classes', 'classifier', turned=True))})
ROBERTA = _families(
    'Roberta', 'roberta', _roberta_in, lambda config: dict(_bert_out(config), pad_token_id=1), BERT_BLOCK, types=True, pooler='tanh', heads={
        'Model': kernel_and_bias('pooler', 'pooler.dense', turned=True),
        'ForMaskedLM': _lm('lm_head.dense', 'lm_head.layer_norm', 'lm_head.bias'),
        'ForSequenceClassification': (*kernel_and_bias('pooler', 'classifier.dense', turned=True), *kernel_and_bias('classes', 'classifier.out_proj', turned=True))})
DISTILBERT = _families(
    'DistilBert', 'distilbert', _distilbert_in, _distilbert_out, DISTILBERT_BLOCK, types=False, pooler='relu', heads={
        'Model': (), 'ForMaskedLM': _lm('vocab_transform', 'vocab_layer_norm', 'vocab_projector.bias'),
        'ForSequenceClassification': (*kernel_and_bias('pooler', 'pre_classifier', turned=True), *kernel_and_bias('classes', 'classifier', turned=True))})
