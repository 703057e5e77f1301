"""EPR: a language model says which demonstrations help it, two encoders learn to retrieve them, and it answers with what they find.

    python -m distill_jax.main --config=configs/epr.py              laptop: generated commands and a bundled reader, CPU, minutes
    python -m distill_jax.main --config=configs/epr.py:tiny         seconds; the whole pipeline, for tests
    python -m distill_jax.main --config=configs/epr.py:reader       makes the bundled reader; then copy runs/epr/export/model into distill_jax/bundled/reader
    python -m distill_jax.main --config=configs/epr.py:break --config.tasks.task.source=DIR         Break, with a small reader trained here
    python -m distill_jax.main --config=configs/epr.py:smcalflow --config.tasks.task.source=DIR     SMCalFlow, likewise
    python -m distill_jax.main --config=configs/epr.py:full         Break, GPT-Neo-2.7B reads, two BERT-base encoders: the paper's setting

Rubin et al. 2022, Learning To Retrieve Prompts for In-Context Learning (arXiv 2112.08633). Stated beforehand, for the sign tests: EPR above
BM25 above random, with one demonstration and with as many as fit; EPR above the retrievers that learn from other scores (BM25's, overlap of the
targets: CBR) and above the control that learns from shuffled scores. Every learnt retriever has the same candidates, encoders, steps and
batch. Oracles: BM25 with the perfect answer as its query, and the reader's own likelihood of it. Sentence encoder: the mean of the reader's last
hidden states over the question (not trained for retrieval). Laptop size: commands (distill_jax/tasks/commands.py), whose names only the right
demonstrations tell; figures and times in configs/README.md.
"""
from ml_collections import ConfigDict

LEARNT = dict(epr='EPR', dr_bm25='DR-BM25', cbr='CBR', shuffled='EPR, shuffled scores')
COMMANDS = dict(
    task=dict(task='commands'), own=None, reader=dict(load='bundled:reader'), tokenizer='bundled:reader', encoder=dict(model='encoder', width=64, layers=2, heads=4, mlp_width=128, max_length=64),
    count=50, test=150, found=12, context=72, max_new_tokens=8, group=32, steps=300, lr=2e-3, warmup=30,
    length=16, context_length=24, words='words', rank_batch=512, batch=100, encode_batch=100, arms=('epr', 'dr_bm25', 'shuffled'), positive='sampled', chunk=None, dropout=0.1)
REAL = {**COMMANDS, **dict(
    own=dict(width=96, layers=3, heads=4, mlp_width=256, bpe=1024, length=256, steps=600, batch=8, lr=3e-3, shots=3), first=800, count=30, test=200, found=8, context=256,
    encoder=dict(model='encoder', width=64, layers=2, heads=4, mlp_width=128, max_length=128),
    max_new_tokens=72, length=40, context_length=96, arms=('epr', 'cbr'), words='spaces', rank_batch=128, batch=50)}
SIZES = {
    '': COMMANDS,
    'tiny': {**COMMANDS, **dict(task=dict(task='commands', counts=dict(train=40, test=8)), count=12, test=8, found=8, group=16, steps=3, warmup=1, arms=('epr', 'shuffled'), batch=8)},
    'reader': {**COMMANDS, 'own': dict(width=64, layers=2, heads=4, mlp_width=128, bpe=750, length=72, steps=1500, batch=16, lr=5e-3, shots=None)},
    'break': {**REAL, 'task': dict(task='break_qdmr', source='data/break', longest=30)},
    'smcalflow': {**REAL, 'task': dict(task='smcalflow', source='data/smcalflow', longest=16), 'words': 'words'},
    # the release scores with the same prompts; Adam, 30 epochs of 44,000 questions in batches of 120
    'full': {**COMMANDS, **dict(
        task=dict(task='break_qdmr', source='data/break'), words='spaces', reader=dict(load='EleutherAI/gpt-neo-2.7B', params_dtype='bfloat16', overrides=dict(dtype='bfloat16')),
        encoder=dict(load='google-bert/bert-base-uncased', overrides=dict(dropout=0.1)), test=None, found=50, context=2048, max_new_tokens=256, arms=tuple(LEARNT),
        group=120, steps=11000, lr=1e-4, warmup=1237, length=256, context_length=256, chunk=24, rank_batch=64, batch=64)},
}


def get_config(size: str = '') -> ConfigDict:
  """The recipe at one of SIZES."""
  if size not in SIZES:
    raise ValueError(f'configs/epr.py has no size {size!r}; there is {", ".join(map(repr, SIZES))}')
  s = SIZES[size]
  c = ConfigDict()
  c.seed = 0
  c.title = 'Learning to retrieve demonstrations (EPR)'
  c.tasks = dict(task=s['task'])
  read = dict(stage='read', role='student')
  encoder = dict(model={**s['encoder'], 'dropout': s['dropout']}, tokenizer=read if s['own'] else s['tokenizer']) if 'model' in s['encoder'] else s['encoder']
  c.roles, c.stages, c.run = dict(encoder=encoder, reader=read if s['own'] else s['reader']), dict(), []
  if s['own']:
    _own_reader(c, s)
  if size == 'reader':
    return _reader(c)
  shared = dict(task='task')
  reads = dict(reader='reader')
  ask = dict(split='test', first=s['test'], count=s['found'], **shared)
  c.stages.candidates = dict(stage='search', by='bm25', field='target', split='train', count=s['count'], words=s['words'], first=s.get('first'), **shared)
  c.run += ['candidates']
  ranks = dict(epr=dict(by='likelihood', roles=reads, how=dict(batch=s['rank_batch'])), dr_bm25=dict(by='as_found'), cbr=dict(by='overlap'), shuffled=dict(by='shuffled'))
  for arm in s['arms']:
    c.stages[f'rank_{arm}'] = dict(stage='rank', of=['rank_epr' if arm == 'shuffled' else 'candidates'], split='train', **ranks[arm], **shared)
    c.stages[f'learn_{arm}'] = dict(
        stage='train', of=[f'rank_{arm}'], roles=dict(student='encoder', prompt='encoder'), method=dict(method='retrieve', positive=s['positive'], chunk=s['chunk']),
        optim={role: dict(lr=s['lr'], warmup=s['warmup'], decay='linear', clip=2.0, name='adamw') for role in ('student', 'prompt')}, steps=s['steps'], batch=1,
        group=s['group'], length=s['length'], source_length=s['context_length'], how=dict(save=1000, log=50), title=LEARNT[arm], **shared)
    trained = {role: dict(stage=f'learn_{arm}', role=role) for role in ('student', 'prompt')}
    c.roles.update({f'{arm}_{role}': made for role, made in trained.items()})
    encode = dict(how=dict(batch=s['encode_batch']))
    c.stages[f'index_{arm}'] = dict(stage='index', roles=dict(prompt=f'{arm}_prompt'), **encode, **shared)
    c.stages[f'found_{arm}'] = dict(stage='search', by='dense', of=[f'index_{arm}'], roles=dict(student=f'{arm}_student', prompt=f'{arm}_prompt'), **encode, **ask)
    c.run += [f'rank_{arm}', f'learn_{arm}', f'index_{arm}', f'found_{arm}']
  c.stages.update(dict(
      found_random=dict(stage='search', by='random', **ask),
      found_bm25=dict(stage='search', by='bm25', words=s['words'], **ask),
      found_hidden=dict(stage='search', by='hidden', roles=reads, how=dict(batch=s['encode_batch']), **ask),
      found_bm25_oracle=dict(stage='search', by='bm25', field='target', words=s['words'], **{**ask, 'count': s['count']}),
      found_lm_oracle=dict(stage='rank', of=['found_bm25_oracle'], split='test', by='likelihood', roles=reads, how=dict(batch=s['rank_batch']), **shared)))
  titles = dict(random='random', bm25='BM25', hidden='sentence encoder', **{arm: LEARNT[arm] for arm in s['arms']}, bm25_oracle='BM25 oracle', lm_oracle='LM oracle')
  c.run += [f'found_{arm}' for arm in titles if arm not in s['arms']]
  for arm, title in titles.items():
    c.stages[arm] = dict(stage='infer', of=[f'found_{arm}'], roles=reads, shots=dict(one=1, many=None), context=s['context'], max_new_tokens=s['max_new_tokens'],
                         how=dict(batch=s['batch']), title=title, **shared)
  c.run += list(titles)
  pairs = [('epr', 'bm25'), ('bm25', 'random'), *(('epr', arm) for arm in s['arms'] if arm != 'epr'), ('lm_oracle', 'epr')]
  c.compare = [(*pair, split) for pair in pairs for split in ('one', 'many')]
  return c


def _own_reader(c: ConfigDict, s) -> None:
  """A small reader, trained so that it uses what stands before a question: on the task's episodes (shots=None), or on its own questions, each behind
  its nearest neighbours (BM25)."""
  o = s['own']
  shape = dict(model='transformer', width=o['width'], layers=o['layers'], heads=o['heads'], mlp_width=o['mlp_width'], max_length=max(o['length'], 96), init='fan_in')
  c.roles.new = dict(model=shape, tokenizer=dict(bpe=o['bpe']))
  texts = dict(split='episodes', target='gold')
  if o['shots']:
    c.stages.near = dict(stage='search', by='bm25', split='train', count=o['shots'], words=s['words'], task='task')
    c.stages.episodes = dict(stage='demonstrate', of=['near'], shots=o['shots'], task='task')
    c.run += ['near', 'episodes']
    texts = dict(of=['episodes'], target='prompt')
  c.stages.read = dict(
      stage='train', roles=dict(student='new'), task='task', method=dict(method='sft'), steps=o['steps'], batch=o['batch'], length=o['length'], overlong='cut', pack=False,
      optim=dict(lr=o['lr'], warmup=50, decay='cosine', final=0.05, weight_decay=0.05, b2=0.98), how=dict(save=500, log=50), title='reader', **texts)
  c.run += ['read']


def _reader(c: ConfigDict) -> ConfigDict:
  """The reader alone, and its export."""
  c.title = 'The bundled reader of commands'
  c.stages.export = dict(stage='export', roles=dict(student='reader'), task='task', dtype='bfloat16',
                         card='It reads generated commands behind demonstrations of their form, and knows no name of any action by itself.')
  c.run = ['read', 'export']
  return c
