"""Fine-tune-CoT: students learn from rationales of a teacher whose answer was right, several of them a question (diverse reasoning).

    python -m distill_jax.main --config=configs/fine_tune_cot.py           laptop: generated questions, students from scratch, CPU, minutes
    python -m distill_jax.main --config=configs/fine_tune_cot.py:tiny      seconds; the whole pipeline, for tests
    python -m distill_jax.main --config=configs/fine_tune_cot.py:full      MultiArith, a teacher from the hub asked in two steps, GPT-2 students
    python -m distill_jax.main --config=configs/fine_tune_cot.py:recorded --config.tasks.svamp.source=DIR --config.tasks.commonsense_qa.source=DIR
        --config.tasks.boolean_expressions.source=DIR                      rationales of real teachers, graded; less than a minute

Ho et al. 2022 (arXiv 2212.10071; ACL 2023). The teacher writes D rationales a question (zero-shot-CoT in two steps, Kojima et al. 2022), those
whose answer is the gold one are kept, the student learns `question ###` -> ` rationale --> gold answer`. Arms of equal steps: answers only; D = 1,
2, 4, 8; controls: D = 1 unfiltered, D = 1 with each rationale repeated 8 times, answers of the questions that survive the filter; two sizes of
students; zero-shot and zero-shot-CoT of the untrained student. The last step is reported, nothing is chosen on test.
Laptop size: tracking shuffled objects; the teacher is the task's narrator (several styles; two texts in five hold a wrong step and so a wrong answer).
`:recorded`: PaLM 540B on SVAMP and CommonsenseQA (records with `palm_540b_cot`, Hsieh et al. 2023), Codex on twelve tasks of BIG-Bench Hard (tasks/ and
code_davinci_002_cot.jsonl.gz of suzgunmirac/BIG-Bench-Hard). Figures reached and times in configs/README.md.
"""
from ml_collections import ConfigDict

THEN = '\nTherefore, the answer is'
SHAPE = dict(model='transformer', max_length=256, norm='rms', tied=True, init='fan_in')
LAPTOP = dict(
    task=dict(task='shuffled_objects', swaps=3, counts=dict(train=400, dev=60, test=225, test_long=225)), splits=('test', 'test_long'),
    students=dict(large={**SHAPE, **dict(width=64, layers=3, heads=4, mlp_width=192)}, small={**SHAPE, **dict(width=32, layers=2, heads=2, mlp_width=96)}),
    bpe=400, samples=(1, 2, 4, 8), steps=600, batch=16, length=128, answers_length=64, lr=4e-3, warmup=50, max_new_tokens=96, answer_tokens=8,
    asked=45, evaluate_batch=225, save=300, log=20)
SIZES = {
    '': LAPTOP,
    'tiny': {**LAPTOP, **dict(
        task=dict(task='shuffled_objects', swaps=2, counts=dict(train=12, dev=4, test=4, test_long=4)), splits=('test',), samples=(1, 2),
        students={name: {**SHAPE, **dict(width=16, layers=1, heads=2, mlp_width=32)} for name in ('large', 'small')},
        steps=2, batch=8, max_new_tokens=8, asked=4, evaluate_batch=4, save=2, log=1)},
}


def get_config(size: str = '') -> ConfigDict:
  """The recipe at one of SIZES, or 'recorded'."""
  if size == 'recorded':
    return recorded()
  if size not in SIZES:
    raise ValueError(f'configs/fine_tune_cot.py has no size {size!r}; there is {", ".join(map(repr, [*SIZES, "recorded"]))}')
  s = SIZES[size]
  most = max(s['samples'])
  c = ConfigDict()
  c.seed = 0
  c.title = 'Fine-tune-CoT'
  c.tasks = dict(
      teacher=dict(**s['task'], prompt='zero_shot_cot', completion='zero_shot_cot'),
      student=dict(**s['task'], written='zero_shot_cot'),
      repeated=dict(**s['task'], written='zero_shot_cot', repeat=most),
      answers=dict(**s['task'], completion='answer', written='zero_shot_cot'),
      zero_shot=dict(**s['task'], prompt='zero_shot', completion='answer'))
  optim = dict(lr=s['lr'], warmup=s['warmup'], decay='cosine', final=0.05, weight_decay=0.01, b2=0.98)
  how = dict(save=s['save'], log=s['log'])
  c.roles = dict(new=dict(model={**SHAPE, **dict(width=16, layers=1, heads=1, mlp_width=16)}, tokenizer=dict(bpe=s['bpe'])))
  for name, shape in s['students'].items():
    c.roles[name] = dict(model=shape, tokenizer=dict(stage='words', role='student'))
  stages = dict(
      written=dict(stage='generate', narrated=True, task='teacher', split='train', samples=most),
      everything=dict(stage='grade', of=['written'], task='teacher', tasks=dict(student='student'), keep='all', dedupe=False),
      words=dict(stage='train', of=['everything'], roles=dict(student='new'), method=dict(method='sft'), steps=1, batch=1, length=s['length'],
                 optim=dict(lr=1e-3), title='tokenizer (one step of a model that is not used)'))
  arms, evaluated = {}, {}
  cot = lambda samples, student='student', **more: dict(stage='grade', of=['written'], task='teacher', tasks=dict(student=student), samples=samples,
                                                        dedupe=False, **more)
  for count in s['samples']:
    stages[f'kept_{count}'] = cot(count)
    arms[f'cot_{count}'] = (f'Fine-tune-CoT, D = {count}', 'large', f'kept_{count}')
  stages.update(kept_all=cot(1, keep='all'), kept_repeated=cot(1, 'repeated'), kept_answers=cot(1, 'answers'))
  arms.update(
      cot_unfiltered=('Fine-tune-CoT, D = 1, unfiltered', 'large', 'kept_all'),
      cot_repeated=(f'Fine-tune-CoT, D = 1, each {most} times', 'large', 'kept_repeated'),
      answers=('answers only', 'large', None),
      answers_surviving=('answers only, questions that survive', 'large', 'kept_answers'),
      **{f'cot_{most}_small': (f'Fine-tune-CoT, D = {most}, small student', 'small', f'kept_{most}')},
      answers_small=('answers only, small student', 'small', None))
  for name, (title, role, kept) in arms.items():
    short = name.startswith('answers')
    task = 'answers' if short else 'student'
    data = dict(split='train', target='gold') if kept is None else dict(of=[kept])
    stages[name] = dict(stage='train', roles=dict(student=role), task=task, method=dict(method='sft'), steps=s['steps'], batch=s['batch'],
                        length=s['answers_length'] if short else s['length'], optim=optim, how=how, title=title, **data)
    c.roles[f'{name}_student'] = dict(stage=name, role='student')
    evaluated[name] = dict(stage='evaluate', roles=dict(student=f'{name}_student'), task=task, splits=s['splits'], title=title, part=300,
                           max_new_tokens=s['answer_tokens'] if short else s['max_new_tokens'], how=dict(batch=s['evaluate_batch']))
  stages.update({f'evaluate_{name}': value for name, value in evaluated.items()})
  c.stages, c.run = stages, list(stages)
  return c


CODEX = ('boolean_expressions', 'date_understanding', 'logical_deduction_three_objects', 'multistep_arithmetic_two', 'navigate', 'object_counting',
         'penguins_in_a_table', 'reasoning_about_colored_objects', 'sports_understanding', 'tracking_shuffled_objects_three_objects', 'web_of_lies',
         'word_sorting')


def recorded() -> ConfigDict:
  """Rationales that real teachers wrote, graded; what is kept is handed on as what a student learns. No student: these questions are not for small ones."""
  c = ConfigDict()
  c.seed = 0
  c.title = 'Rationales of real teachers, graded'
  sets = dict(svamp=dict(task='svamp', reads='value', source='data/svamp'),
              commonsense_qa=dict(task='commonsense_qa', reads='bracketed', source='data/commonsense_qa'),
              **{name: dict(task='bbh', name=name, source='data/bbh') for name in CODEX})
  c.tasks, c.stages, run = ConfigDict(), ConfigDict(), []
  for name, task in sets.items():
    c.tasks[name] = dict(**task, completion='answer_is', prompt='plain')
    if name in CODEX[1:]:
      c.tasks[name].source = c.tasks[CODEX[0]].get_ref('source')      # one directory for all of them
    source = c.tasks[name].get_ref('source')
    c.tasks[f'{name}_student'] = {**task, **dict(source=source, completion='ft_cot_token', prompt='marked', written='answer_is')}
    file = source + ('/code_davinci_002_cot.jsonl.gz' if name in CODEX else '/train.jsonl.gz')
    c.stages[f'{name}_written'] = dict(stage='generate', task=name, split='all', recorded=file)
    c.stages[f'{name}_kept'] = dict(stage='grade', of=[f'{name}_written'], task=name, tasks=dict(student=f'{name}_student'), dedupe=False)
    run += [f'{name}_written', f'{name}_kept']
  c.roles, c.run = ConfigDict(), run
  return c
