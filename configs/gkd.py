"""On-policy distillation: a student that has read its teacher's text goes on by its own, marked token by token by the teacher.

    python -m distill_jax.main --config=configs/gkd.py           laptop: bundled problems and checkpoints, CPU, minutes
    python -m distill_jax.main --config=configs/gkd.py:tiny      seconds; the whole pipeline, for tests

Agarwal et al. 2023, GKD (arXiv 2306.13649). The teacher writes solutions, right ones are kept, a student learns them by cross-entropy (the
start, as in the paper). From there three arms of equal steps, rows and objective jsd(beta), each token marked by the live teacher: off-policy
(the kept text), on-policy (every row continued by the student before its step) and mixed (half of the rows). Beside them the start, the
untrained student and the teacher. Claim in direction: rows of the student's own teach it more than the same number of rows of the
teacher's text. Own data, teacher and student: see README.md; the paper's are T5 models on GSM8K, XSum and WMT. On-policy steps cost the sampling
besides, so equal steps are not equal time: the report shows the seconds of each arm. Figures reached and times in configs/README.md.
"""
from ml_collections import ConfigDict

LAPTOP = dict(
    counts=dict(train=1500), task_seed=1, samples=1, temperature=0.7, max_new_tokens=96, length=160, splits=('test', 'test_range', 'test_family'),
    start=dict(steps=400, batch=8, length=256, lr=3e-3), steps=300, batch=16, lr=1e-3, warmup=20, beta=0.5, generate_batch=256, evaluate_batch=100,
    save=100, log=10, part=500)
SIZES = {
    '': LAPTOP,
    'tiny': {**LAPTOP, **dict(
        counts=dict(train=8, dev=4, test=4, test_range=4, test_family=4), splits=('test',), max_new_tokens=80, start=dict(steps=2, batch=4, length=256, lr=3e-3),
        steps=2, batch=4, warmup=1, generate_batch=8, evaluate_batch=4, save=2, log=1, part=4)},
}
ARMS = dict(off_policy=(0.0, 'off-policy KD'), on_policy=(1.0, 'on-policy GKD'), mixed=(0.5, 'mixed, half of the rows'))


def get_config(size: str = '') -> ConfigDict:
  """The recipe at one of SIZES."""
  if size not in SIZES:
    raise ValueError(f'configs/gkd.py has no size {size!r}; there is {", ".join(map(repr, SIZES))}')
  s = SIZES[size]
  c = ConfigDict()
  c.seed = 0
  c.title = 'On-policy distillation'
  c.notes = ['The problems are generated (bundled), not GSM8K; teacher and student are small bundled models that know such problems only.',
             'Arms start from the same student (start) and take as many steps of as many rows; on-policy rows cost their sampling besides.']
  c.tasks = dict(problems=dict(task='gsm8k', source='bundled', counts=s['counts'], seed=s['task_seed']))
  c.roles = dict(teacher=dict(load='bundled:teacher'), base=dict(load='bundled:student'), start=dict(stage='start', role='student'))
  optim = lambda lr: dict(lr=lr, warmup=s['warmup'], decay='cosine', final=0.05, weight_decay=0.05, b2=0.98)
  how = dict(save=s['save'], log=s['log'])
  answering = dict(stage='evaluate', task='problems', splits=s['splits'], max_new_tokens=s['max_new_tokens'], part=300, how=dict(batch=s['evaluate_batch']))
  first = {name: value for name, value in s['start'].items() if name != 'lr'}
  c.stages = dict(
      generate=dict(
          stage='generate', roles=dict(teacher='teacher'), task='problems', split='train', samples=s['samples'], temperature=s['temperature'],
          max_new_tokens=s['max_new_tokens'], part=s['part'], how=dict(batch=s['generate_batch'])),
      grade=dict(stage='grade', of=['generate'], task='problems', cap=s['samples']),
      start=dict(stage='train', of=['grade'], roles=dict(student='base'), task='problems', method=dict(method='sft'), optim=optim(s['start']['lr']), how=how,
                 title='start (sft on teacher text)', **first),
      evaluate_teacher=dict(**answering, roles=dict(teacher='teacher'), title='teacher'),
      evaluate_untrained=dict(**answering, roles=dict(student='base'), title='untrained student'),
      evaluate_start=dict(**answering, roles=dict(student='start'), title='start (sft on teacher text)'),
  )
  for name, (share, title) in ARMS.items():
    c.roles[f'{name}_student'] = dict(stage=name, role='student')
    written = dict(max_new_tokens=s['max_new_tokens']) if share else {}
    c.stages[name] = dict(
        stage='train', of=['grade'], roles=dict(student='start', teacher='teacher'), task='problems', pack=False, length=s['length'],
        method=dict(method='gkd', on_policy=share, beta=s['beta'], **written), steps=s['steps'], batch=s['batch'], optim=optim(s['lr']), how=how, title=title)
    c.stages[f'evaluate_{name}'] = dict(**answering, roles=dict(student=f'{name}_student'), title=title)
  c.run = ['generate', 'grade', 'start', *ARMS, 'evaluate_teacher', 'evaluate_untrained', 'evaluate_start', *[f'evaluate_{name}' for name in ARMS]]
  c.compare = [('evaluate_on_policy', 'evaluate_off_policy', split) for split in s['splits']]
  return c
