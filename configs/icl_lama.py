"""In-context learning distillation (Huang, Chen, Yu, McKeown 2022, arXiv 2212.10670), LAMA protocol (In-context Tuning, arXiv 2110.07814).

    python -m distill_jax.main --config=configs/icl_lama.py             laptop: generated facts, cloze prompts, a decoder; --seeds=3
    python -m distill_jax.main --config=configs/icl_lama.py:tiny        seconds (:tiny_bert the same with encoders that fill in a mask)
    python -m distill_jax.main --config=configs/icl_lama.py:bert        laptop, teacher and student are encoders
    python -m distill_jax.main --config=configs/icl_lama.py:facts --config.tasks.trained.source=DIR --config.tasks.tested.source=DIR --config.tasks.texts.source=DIR
                                                                        real facts (T-REx), models trained on their sentences here
    python -m distill_jax.main --config=configs/icl_lama.py:full ...    as :facts, GPT-2 large teaches GPT-2: for an accelerator

Five demonstrations of the query's relation, none with its subject or object, one template for an episode; tested on every template x query x draw.
With one of the generated templates ('<input> , <label>.') only the demonstrations say which relation is meant. Options are the objects of the
relation: P@1, P@10, MRR. Arms and paradigms: configs/icl.py, whose parts this recipe shares. Figures and times: configs/README.md.
"""
import importlib.util
import pathlib

from ml_collections import ConfigDict

LAPTOP = dict(
    counts=dict(relations=6, held=3, subjects=48, objects=12, shots=32, turns=8), task_seed=0, k=5, draws=4, vote_draws=5, tuned=None, queries=None, length=64, plain_length=48,
    bpe=1000, max_length=128, masked=False, teacher=dict(width=64, layers=2, heads=4, mlp_width=128), student=dict(width=32, layers=2, heads=4, mlp_width=64),
    teacher_lm=1500, student_lm=800, teacher_steps=600, steps=300, batch=16, lm_batch=16, lr=3e-3, tune_lr=3e-4, warmup=30, decay='cosine', weight_decay=0.05, alpha=0.5, beta=1.0,
    evaluate_batch=128, save=1000, log=20, arms=dict(meta=('ict', 'icld', 'icld_lm', 'smoothed'), multi=('ict', 'icld', 'icld_lm', 'smoothed')))
TINY = {**LAPTOP, **dict(
    counts=dict(features=2, labels=2, carriers=2, classes=2, relations=1, held=1, subjects=8, objects=3, shots=5, turns=1, lists=1), k=1, draws=1, bpe=300, length=64,
    plain_length=128, max_length=256, teacher=dict(width=16, layers=1, heads=2, mlp_width=16), student=dict(width=16, layers=1, heads=2, mlp_width=16), teacher_lm=2,
    student_lm=2, teacher_steps=2, steps=2, batch=4, lm_batch=4, warmup=1, evaluate_batch=8, save=2, log=1, arms=dict(meta=('ict', 'icld_lm'), multi=()))}
FACTS = dict(real='data/trex_facts', counts=None, bpe=4096, length=128, plain_length=96, max_length=256, queries=12, draws=2, teacher=dict(width=96, layers=3, heads=4, mlp_width=256),
             student=dict(width=48, layers=2, heads=4, mlp_width=128), teacher_lm=2000, student_lm=1000,
             arms=dict(meta=('ict', 'icld', 'icld_lm'), multi=('ict', 'icld', 'icld_lm')))
SIZES = {
    '': LAPTOP, 'tiny': TINY, 'bert': {**LAPTOP, 'masked': True}, 'tiny_bert': {**TINY, 'masked': True}, 'facts': {**LAPTOP, **FACTS},
    'full': {**LAPTOP, **FACTS, **dict(teacher='openai-community/gpt2-large', student='openai-community/gpt2', draws=20, queries=None, length=256, teacher_steps=20000,
                                       steps=20000, batch=48, lm_batch=48, lr=1e-5, tune_lr=1e-5, warmup=100, decay='linear', weight_decay=0.0)},
}


def _shared():
  """configs/icl.py, which stands beside this file."""
  spec = importlib.util.spec_from_file_location('icl_recipe', pathlib.Path(__file__).with_name('icl.py'))
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def get_config(size: str = '') -> ConfigDict:
  """The recipe at one of SIZES."""
  if size not in SIZES:
    raise ValueError(f'configs/icl_lama.py has no size {size!r}; there is {", ".join(map(repr, SIZES))}')
  s, icl = SIZES[size], _shared()
  c = ConfigDict()
  c.seed = 0
  c.title = 'In-context learning distillation, cloze facts'
  c.notes = ['Real facts and sentences, of which the models have read no more than these.'] if 'real' in s else ['Facts are generated; all of them stand in the plain texts.']
  if 'real' in s:
    facts = lambda **more: dict(task='facts', source=s['real'], **more)
    c.tasks = dict(trained=facts(tested=False, beside=s['k']), tested=facts(tested=True, beside=s['k']), texts=facts(family='sentences'))
  else:
    family = lambda **more: dict(task='families', seed=s['task_seed'], counts=s['counts'], **more)
    c.tasks = dict(trained=family(family='relations'), tested=family(family='relations', tested=True), texts=family(family='sentences'))
  optim = dict(lr=s['lr'], warmup=s['warmup'], decay=s['decay'], final=0.1, weight_decay=s['weight_decay'], b2=0.98)
  training = dict(stage='train', optim=optim, how=dict(save=s['save'], log=s['log']))
  c.stages, c.run, c.compare = dict(texts=dict(stage='episodes', task='texts', form='plain')), ['texts'], []
  c.roles = icl._language_models(c, s, training)
  if s['masked']:
    _fill_masks(c, s)
  counting = dict(roles=dict(student='student_lm'))      # its tokenizer knows the mask, and counts
  draw = dict(stage='episodes', form='cloze', overlap=False, k=s['k'], masked=s['masked'], length=s['length'], **counting)
  for p in (p for p in icl.PARADIGMS if s['arms'][p]):
    tests = dict(**draw, task='tested', split='test', pool='shots', count=s['queries'], templates='every', draws=s['draws'] if p == 'meta' else s['vote_draws'])
    tune = dict(**draw, task='trained') if p == 'meta' else dict(**draw, task='tested', split='shots')
    made = {f'{p}_episodes': dict(**tune, draws=2, count=s['tuned']), f'{p}_facts': tests, f'{p}_no_demonstrations': {**tests, 'k': 0}}
    c.stages.update(made)
    c.run += made
    icl._paradigm(c, s, p, dict(**{**training, 'optim': {**optim, 'lr': s['tune_lr']}}, length=s['length'], pack=False), [f'{p}_facts'], [f'{p}_no_demonstrations'])
    for a, b in (('icld', 'ict'), ('icld_lm', 'icld'), ('icld', 'smoothed')):
      if {a, b} <= set(s['arms'][p]):
        c.compare += [(f'choose_{p}_{a}', f'choose_{p}_{b}', f'{p}_facts', *more) for more in ((), ('MRR',))]
  return c


def _fill_masks(c, s) -> None:
  """Encoders in place of decoders; their language models learn 15 % of the tokens, by method icl without an episode."""
  for name in ('teacher', 'student'):
    shape = {key: value for key, value in c.roles[f'{name}_new'].model.items() if key not in ('model', 'init')}
    c.roles[f'{name}_new'].model = dict(model='encoder', lm_head=True, norm_eps=1e-6, **shape)
    c.stages[f'{name}_lm'].method = dict(method='icl', alpha=1.0, beta=1.0)
    c.stages[f'{name}_lm'].pack = False
    c.stages[f'{name}_lm'].length = s['plain_length']
  c.roles.teacher_new.tokenizer = dict(bpe=s['bpe'], mask=True)
