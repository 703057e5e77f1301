"""The two checkpoints of configs/ekt.py, made on generated text only (`distill_jax/tasks/program_texts.py`).

Command: python -m distill_jax.main --config=configs/bundled_programs.py      (half a core: a quarter of an hour; `:tiny` seconds, for tests)
Then:    cp -r runs/bundled_programs/export_teacher/model/. distill_jax/bundled/program_teacher/, and the same for program_student.

teacher: an imperfect language model of documents about generated problems: programs, one in five of them spoilt, worked solutions, questions.
  What follows a question depends on the document, so it has to be shown what is asked for.
student: has read questions, programs that belong to none, and questions before programs over their numbers by any operation.
"""
from ml_collections import ConfigDict

SIZES = {
    '': dict(
        teacher=dict(width=64, layers=3, heads=4, mlp_width=160), student=dict(width=48, layers=2, heads=2, mlp_width=96),
        count=8000, steps=900, batch=8, read_count=3000, read=400, length=208, save=300, log=50, dev=50),
    'tiny': dict(
        teacher=dict(width=16, layers=2, heads=2, mlp_width=32), student=dict(width=16, layers=1, heads=2, mlp_width=32),
        count=32, steps=4, batch=2, read_count=32, read=2, length=288, save=4, log=1, dev=4),
}


def get_config(size: str = '') -> ConfigDict:
  """The recipe at one of SIZES."""
  if size not in SIZES:
    raise ValueError(f'configs/bundled_programs.py has no size {size!r}; there is {", ".join(map(repr, SIZES))}')
  s = SIZES[size]
  shape = dict(model='transformer', max_length=512, norm='rms', tied=True)
  c = ConfigDict()
  c.seed = 0
  c.title = 'The bundled program writers'
  c.tasks = {f'{reader}_reads': dict(task='program_texts', reader=reader, count=s[count], dev=s['dev'])
             for reader, count in (('teacher', 'count'), ('student', 'read_count'))}
  c.roles = dict(
      new_teacher=dict(model={**shape, **s['teacher']}, tokenizer=dict(bpe=640, digits=False)),
      new_student=dict(model={**shape, **s['student']}, tokenizer=dict(stage='teacher', role='student')),
      teacher=dict(stage='teacher', role='student'),
      student=dict(stage='student', role='student'),
  )
  how = dict(save=s['save'], log=s['log'])
  optim = dict(lr=4e-3, warmup=50, decay='cosine', final=0.05, weight_decay=0.05, b2=0.98)
  reading = dict(stage='train', target='prompt', method=dict(method='sft'), batch=s['batch'], length=s['length'], how=how, optim=optim)
  c.stages = dict(
      teacher=dict(**reading, title='teacher', roles=dict(student='new_teacher'), task='teacher_reads', steps=s['steps']),
      student=dict(**reading, title='student base', roles=dict(student='new_student'), task='student_reads', steps=s['read']),
      export_teacher=dict(
          stage='export', roles=dict(teacher='teacher'), task='teacher_reads', dtype='bfloat16',
          card='It continues documents of generated grade-school problems with programs, solutions or questions, and makes mistakes.'),
      export_student=dict(
          stage='export', roles=dict(student='student'), task='student_reads', dtype='bfloat16',
          card='It has read questions of generated grade-school problems, and programs whose operations do not follow from them.'),
  )
  c.run = ['teacher', 'student', 'export_teacher', 'export_student']
  return c
