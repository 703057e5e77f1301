"""In-context learning distillation (Huang, Chen, Yu, McKeown 2022, arXiv 2212.10670), CrossFit protocol (through MetaICL, arXiv 2110.15943).

    python -m distill_jax.main --config=configs/icl.py             laptop: generated tasks and facts, CPU, minutes; --seeds=3
    python -m distill_jax.main --config=configs/icl.py:tiny        seconds; the whole pipeline, for tests
    python -m distill_jax.main --config=configs/icl.py:words --config.tasks.trained.source=DIR --config.tasks.tested.source=DIR --config.tasks.texts.source=DIR2
                                                                   real word tasks, models trained on them and on the sentences of DIR2 here
    python -m distill_jax.main --config=configs/icl.py:full ...    as :words, GPT-2 large teaches GPT-2: for an accelerator

A teacher that was tuned to read demonstrations (in-context tuning, ICT) is frozen; the student learns its distribution and the gold label at the
query's label tokens (ICL-D), and beside it language modelling with the same teacher (ICL-D(LM)). Meta-ICT tunes on training tasks and tests on
others; Multitask-ICT tunes on 32 examples of each task under test, and draws of demonstrations vote.
Arms take equal steps of equal in-context batches; the compute-matched ICL-D has as many episodes again instead of the plain texts.
Figures and times: configs/README.md.
"""
from ml_collections import ConfigDict

ALL = ('ict', 'icld', 'icld_lm', 'lm_only', 'smoothed', 'shuffled', 'matched')
LAPTOP = dict(
    counts=dict(features=24, labels=24, carriers=16, classes=2, tasks=1000, tested=24, examples=8, queries=8, shots=16, subjects=30, objects=4, relations=3, held=3,
                lists=16000), task_seed=0, k=4, draws=5, tuned=None, queries=None, length=40, plain_length=48, bpe=700, max_length=128,
    teacher=dict(width=64, layers=2, heads=4, mlp_width=128), student=dict(width=32, layers=2, heads=4, mlp_width=64),
    teacher_lm=1800, student_lm=1500, teacher_steps=1500, steps=400, batch=16, lm_batch=16, lr=4e-3, warmup=50, decay='cosine', weight_decay=0.01, alpha=0.5, beta=1.0,
    evaluate_batch=128, save=1000, log=20, arms=dict(meta=ALL, multi=('ict', 'icld', 'icld_lm', 'matched')))
REAL = dict(name='word_tasks', source='data/icl_word_tasks', texts='data/trex_facts')
SIZES = {
    '': LAPTOP,
    'tiny': {**LAPTOP, **dict(
        counts=dict(features=8, labels=8, carriers=4, classes=2, tasks=4, tested=2, examples=4, queries=2, shots=4, subjects=8, objects=3, relations=1, held=1, turns=1,
                    lists=8), k=2, draws=2, bpe=300, length=64, plain_length=128, max_length=256,
        teacher=dict(width=16, layers=1, heads=2, mlp_width=16), student=dict(width=16, layers=1, heads=2, mlp_width=16), teacher_lm=2, student_lm=2, teacher_steps=2,
        steps=2, batch=4, lm_batch=4, warmup=1, evaluate_batch=8, save=2, log=1, arms=dict(meta=('ict', 'icld_lm'), multi=()))},
    'words': {**LAPTOP, **dict(
        real=REAL, k=4, tuned=48, queries=16, bpe=2048, length=160, plain_length=96, max_length=256, teacher_lm=1500, student_lm=600, teacher_steps=1500, steps=400,
        arms=dict(meta=('ict', 'icld', 'icld_lm'), multi=('ict', 'icld', 'icld_lm')))},
    # MetaICL's lengths, cuts, batch and steps
    'full': {**LAPTOP, **dict(
        real=REAL, k=16, length=1024, plain_length=256, max_length=1024, teacher='openai-community/gpt2-large', student='openai-community/gpt2',
        teacher_steps=30000, steps=30000, batch=8, lm_batch=8, lr=1e-5, warmup=0, decay='linear', weight_decay=0.0, evaluate_batch=64, arms=dict(meta=ALL, multi=ALL),
        cuts=dict(cap=256, length=1024, cut='tokens', roles=dict(student='student_lm')))},
}
ARMS = dict(      # name: (title, keywords of the method, None for plain distillation on texts; which rows; rows of a batch)
    ict=('ICT', dict(alpha=1.0), 'episodes', 1),
    icld=('ICL-D', {}, 'episodes', 1),
    icld_lm=('ICL-D(LM)', {}, 'both', 1),
    lm_only=('LM-KD only', None, 'texts', 1),
    smoothed=('labels smoothed to the entropy', dict(soft='smoothed'), 'episodes', 1),
    shuffled=('ICL-D, teacher sees wrong labels', {}, 'mislabelled', 1),
    matched=('ICL-D, twice the episodes', {}, 'episodes', 2),
)
PARADIGMS = dict(meta='Meta-ICT', multi='Multitask-ICT')
STATED = (('icld', 'ict'), ('icld_lm', 'icld'), ('icld', 'smoothed'), ('icld', 'shuffled'), ('icld_lm', 'matched'))      # first better than second?


def get_config(size: str = '') -> ConfigDict:
  """The recipe at one of SIZES."""
  if size not in SIZES:
    raise ValueError(f'configs/icl.py has no size {size!r}; there is {", ".join(map(repr, SIZES))}')
  s = SIZES[size]
  c = ConfigDict()
  c.seed = 0
  c.title = 'In-context learning distillation'
  c.notes = ['Real tasks and sentences, of which the models have read no more than these.'] if 'real' in s else [
      'Tasks are generated: maps are drawn anew for every task, so that only demonstrations tell them; the facts of relations stand in the plain texts.']
  c.tasks, trained, tested = _tasks(s)
  optim = dict(lr=s['lr'], warmup=s['warmup'], decay=s['decay'], final=0.1, weight_decay=s['weight_decay'], b2=0.98)
  training = dict(stage='train', optim=optim, how=dict(save=s['save'], log=s['log']))
  c.stages = dict(texts=dict(stage='episodes', task='texts', form='plain'))
  c.run, c.compare = ['texts'], []
  c.roles = _language_models(c, s, training)
  draw = dict(stage='episodes', k=s['k'], **s.get('cuts', {}))
  for p in (p for p in PARADIGMS if s['arms'][p]):
    tune = dict(**draw, tasks=trained) if p == 'meta' else dict(**draw, tasks=tested, split='shots')
    tests = dict(**draw, split='test', pool='shots', count=s['queries'], **(dict(draws=s['draws']) if p == 'multi' else {}))
    probes, wrong = tests | dict(draws=1, task=next(iter(tested.values()))), dict(teacher=dict(labels='shuffled'))
    made = {f'{p}_episodes': dict(**tune, count=s['tuned']), f'{p}_mislabelled': dict(**tune, count=s['tuned'], **wrong),
            **{f'{p}_{kind}': dict(**tests, task=task) for kind, task in tested.items()},
            f'{p}_no_demonstrations': {**probes, 'k': 0}, f'{p}_wrong_demonstrations': dict(**probes, labels='shuffled')}
    c.stages.update(made)
    c.run += made
    splits = [f'{p}_{kind}' for kind in tested]
    _paradigm(c, s, p, dict(**training, length=s['length'], pack=False), splits, [name for name in made if name.endswith('_demonstrations')])
    named = lambda name: f'choose_{p}_{name}'
    c.compare += [(named(a), named(b), split) for a, b in STATED if {a, b} <= set(s['arms'][p]) for split in splits]
    c.compare.append((f'choose_{p}_teacher', f'choose_{p}_untuned', splits[0]))
  return c


def _tasks(s) -> tuple:
  """(config.tasks, the tasks of training by kind, those under test)."""
  if 'real' in s:
    word_tasks = lambda tested: dict(task='sets', name=s['real']['name'], source=s['real']['source'], tested=tested)
    return dict(trained=word_tasks(False), tested=word_tasks(True), texts=dict(task='facts', family='sentences', source=s['real']['texts'])), \
        dict(words='trained'), dict(words='tested')
  family = lambda **more: dict(task='families', seed=s['task_seed'], counts=s['counts'], **more)
  tasks = dict(maps=family(family='maps'), relations=family(family='relations'), maps_tested=family(family='maps', tested=True),
               relations_tested=family(family='relations', tested=True), texts=family(family='texts'))
  return tasks, dict(maps='maps', relations='relations'), dict(maps='maps_tested', relations='relations_tested')


def _language_models(c, s, training) -> dict:
  """The roles that in-context tuning begins with: checkpoints, or models trained on the plain texts."""
  if isinstance(s['teacher'], str):
    return dict(teacher_lm=dict(load=s['teacher']), student_lm=dict(load=s['student']))
  shape = lambda name: dict(model='transformer', max_length=s['max_length'], init='fan_in', **s[name])
  plain = dict(**training, of=['texts'], method=dict(method='sft'), batch=s['lm_batch'], length=2 * s['plain_length'])
  c.stages.teacher_lm = dict(**plain, roles=dict(student='teacher_new'), steps=s['teacher_lm'], title='teacher, language model')
  c.stages.student_lm = dict(**plain, roles=dict(student='student_new'), steps=s['student_lm'], title='student, language model')
  c.run += ['teacher_lm', 'student_lm']
  return dict(
      teacher_new=dict(model=shape('teacher'), tokenizer=dict(bpe=s['bpe'], breaks=True)), teacher_lm=dict(stage='teacher_lm', role='student'),
      student_new=dict(model=shape('student'), tokenizer=dict(stage='teacher_lm', role='student')), student_lm=dict(stage='student_lm', role='student'))


def _paradigm(c, s, p, training, splits, probes) -> None:
  """The teacher and the arms of a paradigm, each with its answers."""
  def answer(name, role, title, of):
    c.stages[f'choose_{p}_{name}'] = dict(stage='choose', decide='vote' if p == 'multi' else 'each', of=of, roles=dict(student=role),
                                          title=f'{PARADIGMS[p]}: {title}', how=dict(batch=s['evaluate_batch']))
    c.run.append(f'choose_{p}_{name}')

  def tune(name, title, **keywords):
    c.stages[f'{p}_{name}'] = {**training, **keywords, 'title': f'{PARADIGMS[p]}: {title}'}
    c.roles[f'{p}_{name}'] = dict(stage=f'{p}_{name}', role='student')
    c.run.append(f'{p}_{name}')

  tune('teacher', 'teacher', of=[f'{p}_episodes'], roles=dict(student='teacher_lm'), method=dict(method='icl', alpha=1.0), steps=s['teacher_steps'],
       batch=s['batch'])
  answer('teacher', f'{p}_teacher', 'teacher', splits + probes)
  answer('untuned', 'student_lm', 'student before tuning', splits)
  for name in s['arms'][p]:
    title, method, rows, times = ARMS[name]
    roles = dict(student='student_lm', teacher=f'{p}_teacher')
    if method == dict(alpha=1.0):
      del roles['teacher']
    of, more = {'episodes': [f'{p}_episodes'], 'mislabelled': [f'{p}_mislabelled'], 'texts': ['texts'], 'both': [f'{p}_episodes', 'texts']}[rows], {}
    method = dict(method='logit_kd', alpha=1 - s['alpha']) if method is None else dict(method='icl', **{'alpha': s['alpha'], **method})
    if rows == 'both':
      method['beta'], more = s['beta'], dict(length=s['length'] + s['plain_length'], pack='pairs')
    elif rows == 'mislabelled':
      method['teacher_length'] = s['length']
    elif rows == 'texts':
      more = dict(length=s['plain_length'])
    tune(name, title, of=of, roles=roles, method=method, steps=s['steps'], batch=s['batch'] * times, **more)
    answer(name, f'{p}_{name}', title, splits + (probes if name in ('ict', 'icld') else []))
