"""The two checkpoints that ship with the package, made on bundled problems only (generated text, `distill_jax/tasks/problems.py`).

Command: python -m distill_jax.main --config=configs/bundled.py      (2 cores: about an hour; `:tiny` seconds, for tests)
Then:    cp -r runs/bundled/export_teacher/model/. distill_jax/bundled/teacher/, and the same for the student.

teacher: learns worked solutions of 60,000 generated problems.  student: has read the problem texts only, no solution.
"""
from ml_collections import ConfigDict

SIZES = {
    '': dict(
        teacher=dict(width=128, layers=6, heads=2, mlp_width=384), student=dict(width=96, layers=4, heads=2, mlp_width=256),
        train=60000, steps=3000, decay=5000, batch=8, read=800, save=250, log=50, every=500, dev=200),
    'tiny': dict(
        teacher=dict(width=16, layers=2, heads=2, mlp_width=32), student=dict(width=16, layers=1, heads=2, mlp_width=32),
        train=64, steps=8, decay=8, batch=8, read=4, save=4, log=1, every=4, dev=8),
}


def get_config(size: str = '') -> ConfigDict:
  """The recipe at one of SIZES."""
  if size not in SIZES:
    raise ValueError(f'configs/bundled.py has no size {size!r}; there is {", ".join(map(repr, SIZES))}')
  s = SIZES[size]
  shape = dict(model='transformer', max_length=384, norm='rms', tied=True)
  c = ConfigDict()
  c.seed = 0
  c.title = 'The bundled teacher and the bundled student base'
  c.tasks = dict(problems=dict(task='gsm8k', source='bundled', counts=dict(train=s['train'], dev=s['dev'])))
  c.roles = dict(
      new_teacher=dict(model={**shape, **s['teacher']}, tokenizer=dict(bpe=1024)),
      new_student=dict(model={**shape, **s['student'], 'init': 'fan_in'}, tokenizer=dict(stage='teacher', role='student')),
      teacher=dict(stage='teacher', role='student'),
      student=dict(stage='student', role='student'),
  )
  how = dict(save=s['save'], log=s['log'])
  c.stages = dict(
      teacher=dict(
          stage='train', title='teacher', roles=dict(student='new_teacher'), task='problems', target='gold', method=dict(method='sft'),
          steps=s['steps'], batch=s['batch'], length=256, how=how,
          optim=dict(lr=2e-3, warmup=100, decay='cosine', decay_steps=s['decay'], final=0.02, weight_decay=0.05, b2=0.98),
          validate=dict(every=s['every'], metric='accuracy', split='dev', count=s['dev'], max_new_tokens=160, batch=s['dev'])),
      student=dict(
          stage='train', title='student base', roles=dict(student='new_student'), task='problems', target='prompt', method=dict(method='sft'),
          steps=s['read'], batch=s['batch'], length=256, how=how, optim=dict(lr=3e-3, warmup=50, decay='cosine', final=0.05, weight_decay=0.05, b2=0.98)),
      export_teacher=dict(
          stage='export', roles=dict(teacher='teacher'), task='problems', dtype='bfloat16',
          card='It writes worked solutions of generated grade-school problems, and makes mistakes.'),
      export_student=dict(
          stage='export', roles=dict(student='student'), task='problems', dtype='bfloat16',
          card='It has read the texts of generated grade-school problems, and no solution.'),
  )
  c.run = ['teacher', 'student', 'export_teacher', 'export_student']
  return c
