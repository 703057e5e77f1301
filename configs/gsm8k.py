"""GSM8K distilled: a teacher writes rationales, right ones are kept, a student learns text and top-k targets, is measured, and leaves.

    python -m distill_jax.main --config=configs/gsm8k.py             laptop: bundled problems and checkpoints, CPU, minutes
    python -m distill_jax.main --config=configs/gsm8k.py:tiny        seconds; the whole pipeline, for tests
    python -m distill_jax.main --config=configs/gsm8k.py:tiny_t5     the same with an encoder-decoder (T5) as the student
    python -m distill_jax.main --config=configs/gsm8k.py:recorded --config.tasks.gsm8k.source=DIR --config.stages.written.recorded=FILE
                                                                     real problems and recorded solutions of somebody else's teacher
    python -m distill_jax.main --config=configs/gsm8k.py:api --config.roles.teacher.api.model=NAME --config.roles.teacher.api.base_url=URL
                                                                     a teacher behind an OpenAI-compatible API (also tiny-api, full-api)
    python -m distill_jax.main --config=configs/gsm8k.py:full        openai/gsm8k, Qwen2.5 teacher and student: for a pod

Chain-of-thought distillation as in Magister et al. 2022 (arXiv 2212.08410) and Ho et al. 2022 (arXiv 2212.10071), the student trained on
the kept rationales with cross-entropy and the teacher's top-k targets (Hinton et al. 2015). Controls: the same student, same steps, on
answers only (as many steps, about as many examples a step); the untrained student; the teacher. Own data, teacher and student: see README.md.
Laptop size: generated problems and a teacher of 1.4 M parameters; figures reached and times in configs/README.md.
"""
from ml_collections import ConfigDict

HELD_OUT = ('test', 'test_range', 'test_family')
LAPTOP = dict(
    counts=dict(train=2500), task_seed=1, splits=HELD_OUT, teacher='bundled:teacher', base='bundled:student', samples=2, temperature=0.7,
    max_new_tokens=112, length=256, answers_length=128, k=16, steps=1000, batch=8, lr=3e-3, warmup=50, generate_batch=256, evaluate_batch=100, save=200, log=10,
    validate=None, part=500)
SIZES = {
    '': LAPTOP,
    'tiny': {**LAPTOP, **dict(
        counts=dict(train=8, dev=4, test=4, test_range=4, test_family=4), splits=('test',), samples=2, max_new_tokens=96, k=4, steps=4, batch=8,
        generate_batch=16, evaluate_batch=4, save=2, log=1, part=4)},
    # weights cut over all chips for the long passes; for sampling over four, each of which then reads a quarter at every token.
    # What a slice of chips makes of it: python -m distill_jax.plan --config=configs/gsm8k.py:full --topology=v5e:4x4
    'full': {**LAPTOP, **dict(
        source='openai/gsm8k', counts=None, task_seed=0, splits=('test',), teacher='Qwen/Qwen2.5-7B-Instruct', base='Qwen/Qwen2.5-0.5B', samples=8,
        max_new_tokens=320, length=1024, answers_length=512, k=64, steps=3000, batch=128, lr=1e-5, warmup=100, generate_batch=128, label_batch=64, evaluate_batch=1024, save=500,
        validate=dict(every=500, metric='accuracy', split='dev', count=256, patience=3, max_new_tokens=320), part=512,
        teacher_as=dict(params_dtype='bfloat16', overrides=dict(dtype='bfloat16')), base_as=dict(overrides=dict(dtype='bfloat16', remat='full')),
        training_how=dict(mesh=dict(fsdp=-1)), label_how=dict(mesh=dict(fsdp=-1)), teacher_how=dict(mesh=dict(data=-1, tensor=4)))},
}

# the decoder teacher's targets move to the student's rows, whose prompt is the encoder's; teacher and student share a tokenizer
SIZES['tiny_t5'] = {**SIZES['tiny'], **dict(base_model=dict(model='encoder_decoder', width=64, layers=2, heads=4, mlp_width=128, gated=True,
                                                            activation='gelu_tanh', tied=False), base_tokenizer='bundled:student')}


def get_config(size: str = '') -> ConfigDict:
  """The recipe at one of SIZES, or 'recorded'; 'api', 'tiny-api', 'full-api': those sizes with a teacher behind an API."""
  if size == 'recorded':
    return recorded()
  if size == 'api' or size.endswith('-api'):
    return behind_api(get_config(size.removesuffix('api').removesuffix('-')))
  if size not in SIZES:
    known = [*SIZES, 'recorded', *(f'{name}-api'.removeprefix('-') for name in SIZES)]
    raise ValueError(f'configs/gsm8k.py has no size {size!r}; there is {", ".join(map(repr, known))}')
  s = SIZES[size]
  c = ConfigDict()
  c.seed = 0
  c.title = 'GSM8K, distilled'
  generated = s.get('source', 'bundled') == 'bundled'
  c.notes = ['The problems are generated (bundled), not GSM8K; teacher and student are small bundled models that know such problems only.',
             'test: unseen combinations of numbers and steps; test_range: unseen number ranges; test_family: unseen kinds of story.'] if generated else []
  c.tasks = _tasks(s.get('source', 'bundled'), s['counts'], s['task_seed'])
  c.roles = dict(
      teacher=dict(load=s['teacher'], **s.get('teacher_as', {})),
      base=dict(model=s['base_model'], tokenizer=s['base_tokenizer']) if 'base_model' in s else dict(load=s['base'], **s.get('base_as', {})),
      distilled=dict(stage='distill', role='student'),
      answers_only=dict(stage='answers', role='student'),
  )
  method = dict(method='logit_kd', alpha=0.5, k=s['k'])
  optim = dict(lr=s['lr'], warmup=s['warmup'], decay='cosine', final=0.05, weight_decay=0.05, b2=0.98)
  how = dict(save=s['save'], log=s['log'], **s.get('training_how', {}))
  training = dict(stage='train', steps=s['steps'], batch=s['batch'], length=s['length'], optim=optim, how=how)
  if s['validate']:
    training['validate'] = s['validate']
  answering = dict(stage='evaluate', task='gsm8k', splits=s['splits'], max_new_tokens=s['max_new_tokens'], part=300,
                   how=dict(batch=s['evaluate_batch']))
  asking = {**answering, 'how': dict(batch=min(s['generate_batch'], s['evaluate_batch']), **s.get('teacher_how', {}))}      # the teacher
  c.stages = dict(
      generate=dict(
          stage='generate', roles=dict(teacher='teacher'), task='gsm8k', split='train', samples=s['samples'], temperature=s['temperature'],
          max_new_tokens=s['max_new_tokens'], part=s['part'],
          how=dict(batch=s['generate_batch'], **s.get('teacher_how', {}))),
      grade=dict(stage='grade', of=['generate'], task='gsm8k', cap=s['samples']),
      label=dict(
          stage='label', of=['grade'], roles=dict(student='base', teacher='teacher'), method=method, length=s['length'],
          how=dict(batch=s.get('label_batch', min(s['generate_batch'], 64)), **s.get('label_how', {}))),
      distill=dict(**training, of=['label'], roles=dict(student='base'), task='gsm8k', method=method, title='distilled (CoT + KD)'),
      # answers are shorter: at half the row length a step holds as many examples as one of the distilled student
      answers=dict(**{**training, 'length': s['answers_length']}, of=['grade'], roles=dict(student='base'), task='answers_only', target='gold', method=dict(method='sft'),
                   title='answers only'),
      evaluate_teacher=dict(**asking, roles=dict(teacher='teacher'), title='teacher'),
      evaluate_teacher_calculator=dict(**{**asking, 'splits': s['splits'][:1]}, roles=dict(teacher='teacher'), calculator=True, title='teacher, with calculator'),
      evaluate_distilled=dict(**answering, roles=dict(student='distilled'), title='distilled (CoT + KD)'),
      evaluate_answers=dict(**answering, roles=dict(student='answers_only'), title='answers only'),
      evaluate_untrained=dict(**answering, roles=dict(student='base'), title='untrained student'),
      export=dict(stage='export', of=['evaluate_teacher', 'evaluate_distilled', 'evaluate_answers', 'evaluate_untrained'], roles=dict(student='distilled'), task='gsm8k',
                  card='Distilled from the rationales and top-k targets of a teacher.'),
  )
  c.run = ['generate', 'grade', 'label', 'distill', 'answers', 'evaluate_teacher', 'evaluate_teacher_calculator', 'evaluate_distilled',
           'evaluate_answers', 'evaluate_untrained', 'export']
  c.compare = [('evaluate_distilled', 'evaluate_answers', split) for split in s['splits']]
  return c


def behind_api(c: ConfigDict) -> ConfigDict:
  """The recipe with a teacher that gives texts only: the student learns them with cross-entropy, without the teacher's top-k targets."""
  c.title = 'GSM8K, distilled from a teacher behind an API'
  c.notes = [note for note in c.notes if 'bundled models' not in note]
  c.roles.teacher = dict(api=dict(
      base_url='', model='', kind='chat', key_env='OPENAI_API_KEY', template='{prompt}', price=dict(input=0.0, output=0.0),
      system='Work the problem out in short steps. Then write the answer, only the number, on a last line of its own as: #### number'))
  for name in ('generate', 'evaluate_teacher'):
    c.stages[name].how = dict(concurrency=8)
  c.stages.distill.of, c.stages.distill.method = ['grade'], dict(method='sft')
  c.stages.distill.title = c.stages.evaluate_distilled.title = 'distilled (CoT)'
  c.stages.export.card = 'Distilled from the rationales of a teacher behind an API.'
  for name in ('label', 'evaluate_teacher_calculator'):
    del c.stages[name]
  c.run = [name for name in c.run if name in c.stages]
  return c


def _tasks(source, counts, seed) -> ConfigDict:
  """The task and its answers-only twin, which follows its source and counts."""
  tasks = ConfigDict(dict(gsm8k=dict(task='gsm8k', source=source, counts=counts or {}, seed=seed)))
  tasks.answers_only = dict(task='gsm8k', answers='final', source=tasks.gsm8k.get_ref('source'), counts=tasks.gsm8k.counts,
                            seed=tasks.gsm8k.get_ref('seed'))
  return tasks


def recorded() -> ConfigDict:
  """Real problems, and completions that somebody else's teacher wrote for the test questions.

  The recorded solutions are graded; the student learns from the people's solutions of the training split, since the recorded ones answer
  test questions.
  """
  c = ConfigDict()
  c.seed = 0
  c.title = 'GSM8K, real problems and recorded solutions'
  c.notes = ['A model of this size does not solve real GSM8K problems: its accuracy is near zero, and is printed.']
  c.tasks = _tasks('data/gsm8k', {}, 0)
  shape = dict(model='transformer', width=128, layers=4, heads=2, mlp_width=384, max_length=640)
  c.roles = dict(new=dict(model=shape, tokenizer=dict(bpe=2048)), student=dict(stage='train', role='student'))
  c.stages = dict(
      written=dict(stage='generate', task='gsm8k', split='test', recorded='data/gsm8k/example_model_solutions.jsonl'),
      graded=dict(stage='grade', of=['written'], task='gsm8k'),
      train=dict(
          stage='train', roles=dict(student='new'), task='gsm8k', split='train', target='gold', method=dict(method='sft'), steps=150, batch=8,
          length=512, optim=dict(lr=2e-3, warmup=20, decay='cosine'), title='student on real problems', how=dict(save=50)),
      evaluate=dict(stage='evaluate', roles=dict(student='student'), task='gsm8k', splits=('test',), count=200, max_new_tokens=192,
                    how=dict(batch=100), title='student on real problems'),
      export=dict(stage='export', of=['evaluate'], roles=dict(student='student'), task='gsm8k'),
  )
  c.run = ['written', 'graded', 'train', 'evaluate', 'export']
  return c
