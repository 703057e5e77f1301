"""Fine-tune-CoT: students learn from rationales of a teacher whose answer was right, several of them a question (diverse reasoning).

    python -m distill_jax.main --config=configs/fine_tune_cot.py           laptop: generated questions, students from scratch, CPU, minutes
    python -m distill_jax.main --config=configs/fine_tune_cot.py:tiny      seconds; the whole pipeline, for tests
    python -m distill_jax.main --config=configs/fine_tune_cot.py:full      MultiArith, a teacher from the hub asked in two steps, GPT-2 students
    python -m distill_jax.main --config=configs/fine_tune_cot.py:recorded --config.tasks.svamp.source=DIR --config.tasks.commonsense_qa.source=DIR
        --config.tasks.boolean_expressions.source=DIR                      rationales of real teachers, graded; less than a minute

Ho et al. 2022 (arXiv 2212.10071; ACL 2023). The teacher writes D rationales a question (zero-shot-CoT in two steps, Kojima et al. 2022), those
whose answer is the gold one are kept, the student learns `question ###` -> ` rationale --> gold answer`. Arms of equal steps: answers only; D = 1,
2, 4, 8; controls: D = 1 unfiltered, D = 1 with each rationale 8 times, one right rationale of 8 (the questions of D = 8 without its diversity),
answers of the questions that survive the filter; two sizes of students; zero-shot and zero-shot-CoT of the untrained student. The last step is
reported, nothing is chosen on test.
Laptop size: sums of two steps; the teacher is the task's narrator (several styles; two texts in five hold a wrong step and so a wrong answer).
`:recorded`: PaLM 540B on SVAMP and CommonsenseQA (records with `palm_540b_cot`, Hsieh et al. 2023), Codex on twelve tasks of BIG-Bench Hard (tasks/ and
code_davinci_002_cot.jsonl.gz of suzgunmirac/BIG-Bench-Hard). Figures reached and times in configs/README.md.
"""
from ml_collections import ConfigDict

THEN = '\nTherefore, the answer is'
SHAPE = dict(model='transformer', max_length=128, norm='rms', tied=True, init='fan_in', positions='learned')
LAPTOP = dict(
    task=dict(task='sums', counts=dict(train=500, dev=60, test=200)), splits=('test',), teacher=None,
    students=dict(large=dict(model={**SHAPE, **dict(width=48, layers=2, heads=4, mlp_width=128)}),
                  small=dict(model={**SHAPE, **dict(width=24, layers=2, heads=2, mlp_width=64)})),
    bpe=400, samples=(1, 2, 4, 8), steps=1200, batch=8, length=72, answers_length=32, pack=True,
    optim=dict(lr=6e-3, warmup=30, decay='cosine', final=0.05, weight_decay=0.01, b2=0.98),
    max_new_tokens=48, answer_tokens=8, asked=40, few_shot=False, evaluate_batch=200, save=600, log=50)
TINY = dict(width=16, layers=1, heads=2, mlp_width=32)
SIZES = {
    '': LAPTOP,
    'tiny': {**LAPTOP, **dict(
        task=dict(task='sums', counts=dict(train=12, dev=4, test=4)), samples=(1, 2),
        students={name: dict(model={**SHAPE, **TINY}) for name in ('large', 'small')},
        steps=2, batch=8, max_new_tokens=8, asked=4, evaluate_batch=4, save=2, log=1,
        without=('cot_1', 'cot_repeated', 'cot_one', 'answers_surviving', 'cot_2_small', 'answers_small'))},
    # MultiArith: 420 and 180 problems; D = 64 as in the paper; constant learning rate, 20 epochs of the answers. An open teacher for text-davinci-002.
    'full': {**LAPTOP, **dict(
        task=dict(task='mawps', part='multiarith', source='ChilleD/MultiArith'),
        teacher=dict(load='Qwen/Qwen2.5-7B-Instruct', params_dtype='bfloat16', overrides=dict(dtype='bfloat16')),
        students=dict(large=dict(load='openai-community/gpt2-medium'), small=dict(load='openai-community/gpt2')), bpe=None,
        samples=(1, 2, 4, 8, 64), steps=1050, batch=8, length=512, answers_length=512, pack=False,
        optim=dict(lr=3e-4, weight_decay=0.01), max_new_tokens=512, answer_tokens=16, asked=None, few_shot=True, evaluate_batch=64, save=500, log=10,
        teacher_how=dict(batch=128, mesh=dict(data=-1, tensor=4)))},
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
  c.notes = ['Every training arm takes the same number of steps; the last one is reported.',
             'zero-shot-CoT of the untrained student: its right answers are those of the grade stage zero_shot_cot.']
  if s['teacher'] is None:
    c.notes.append('The questions are generated. The teacher is no model but a narrator by rule: several styles; two texts in five hold a wrong step, and '
                   'then a wrong answer. Students are fresh, not pre-trained: few-shot prompts mean nothing to them.')
  c.tasks = dict(
      teacher=dict(**s['task'], prompt='zero_shot_cot', completion='zero_shot_cot'),
      student=dict(**s['task'], written='zero_shot_cot'),
      repeated=dict(**s['task'], written='zero_shot_cot', repeat=most),
      answers=dict(**s['task'], completion='answer', written='zero_shot_cot'),
      zero_shot=dict(**s['task'], prompt='zero_shot', completion='answer'))
  c.roles = {name: dict(**role, tokenizer=dict(stage='words', role='student')) if s['bpe'] else role for name, role in s['students'].items()}
  stages = {**_teacher(c, s, most), **_prompted(c, s)}
  arms = {name: arm for name, arm in _arms(s['samples'], most).items() if name not in s.get('without', ())}
  for name, (title, role, kept, settings) in arms.items():
    short = name.startswith('answers')
    task = 'answers' if short else 'student'
    if kept is not None and kept not in stages:
      stages[kept] = dict(stage='grade', of=['written'], task='teacher', dedupe=False, unfinished=True, **settings)
    data = dict(split='train', target='gold') if kept is None else dict(of=[kept])
    stages[name] = dict(stage='train', roles=dict(student=role), task=task, method=dict(method='sft'), steps=s['steps'], batch=s['batch'], pack=s['pack'],
                        length=s['answers_length'] if short else s['length'], optim=s['optim'], how=dict(save=s['save'], log=s['log']), title=title, **data)
    c.roles[f'{name}_student'] = dict(stage=name, role='student')
  for name, (title, *_) in arms.items():
    short = name.startswith('answers')
    stages[f'evaluate_{name}'] = dict(_asking(s, 'answers' if short else 'student', title, s['answer_tokens'] if short else s['max_new_tokens']),
                                      roles=dict(student=f'{name}_student'))
  c.stages, c.run = stages, list(stages)
  pairs = [(f'cot_{most}', 'answers'), ('cot_1', 'answers'), (f'cot_{most}', 'cot_1'), (f'cot_{most}', 'cot_repeated'), (f'cot_{most}', 'cot_one'),
           ('cot_1', 'cot_unfiltered'), ('cot_1', 'answers_surviving'), (f'cot_{most}_small', 'answers_small')]
  c.compare = [(f'evaluate_{a}', f'evaluate_{b}', split) for split in s['splits'] for a, b in pairs if {a, b} <= set(arms)]
  return c


def _asking(s, task, title, tokens):
  """An evaluate stage without its role."""
  return dict(stage='evaluate', task=task, splits=s['splits'], title=title, part=300, max_new_tokens=tokens, how=dict(batch=s['evaluate_batch']))


def _teacher(c, s, most):
  """The stages that write: a narrator and a tokenizer of what it wrote, or a teacher in two steps."""
  if s['teacher'] is None:
    c.roles['new'] = dict(model={**SHAPE, **TINY}, tokenizer=dict(bpe=s['bpe']))
    return dict(
        written=dict(stage='generate', narrated=True, task='teacher', split='train', samples=most),
        everything=dict(stage='grade', of=['written'], task='teacher', tasks=dict(student='student'), keep='all', dedupe=False),
        words=dict(stage='train', of=['everything'], roles=dict(student='new'), method=dict(method='sft'), steps=0, batch=s['batch'], length=s['length'],
                   optim=s['optim'], title='tokenizer of the texts; nothing is learnt'))
  c.roles['teacher'] = s['teacher']
  writing = dict(stage='generate', roles=dict(teacher='teacher'), task='teacher', split='train', how=s['teacher_how'])
  return dict(reasoned=dict(**writing, samples=most, temperature=0.7, max_new_tokens=128),
              written=dict(**writing, of=['reasoned'], then=THEN, samples=1, temperature=0.0, max_new_tokens=32))


def _prompted(c, s):
  """The untrained student: zero-shot, zero-shot-CoT in two steps, and few-shot where it has read texts before."""
  asking = dict(stage='generate', roles=dict(teacher='large'), task='teacher', split='test', held_out='dev', samples=1, temperature=0.0,
                how=dict(batch=s['asked'] or s['evaluate_batch']))
  stages = dict(
      evaluate_zero_shot=dict(_asking(s, 'zero_shot', 'zero-shot, untrained student', s['answer_tokens']), roles=dict(student='large')),
      thought=dict(**asking, count=s['asked'], max_new_tokens=min(s['max_new_tokens'], 128)),
      answered=dict(**asking, of=['thought'], then=THEN, max_new_tokens=s['answer_tokens']),
      zero_shot_cot=dict(stage='grade', of=['answered'], task='teacher', keep='all', dedupe=False, unfinished=True))
  if s['few_shot']:
    c.tasks['few_shot'] = dict(**s['task'], prompt='few_shot', completion='fs_cot')
    stages['evaluate_few_shot'] = dict(_asking(s, 'few_shot', 'few-shot-CoT, untrained student', 128), roles=dict(student='large'), stop=('\nQ:',))
  return stages


def _arms(samples, most):
  """{name: (title, student, the grade stage it reads or None for people's answers, what that stage keeps)}."""
  student = lambda task: dict(tasks=dict(student=task))
  arms = {f'cot_{n}': (f'Fine-tune-CoT, D = {n}', 'large', f'kept_{n}', dict(samples=n, **student('student'))) for n in samples}
  one = dict(samples=1)
  return {
      **arms,
      'cot_unfiltered': ('Fine-tune-CoT, D = 1, unfiltered', 'large', 'kept_unfiltered', dict(**one, **student('student'), keep='all')),
      'cot_repeated': (f'Fine-tune-CoT, D = 1, each {most} times', 'large', 'kept_repeated', dict(**one, **student('repeated'))),
      'cot_one': (f'Fine-tune-CoT, one right rationale of {most}', 'large', 'kept_one', dict(samples=most, cap=1, **student('student'))),
      'answers': ('answers only', 'large', None, None),
      'answers_surviving': ('answers only, questions that survive D = 1', 'large', 'kept_answers', dict(**one, **student('answers'))),
      f'cot_{most}_small': (f'Fine-tune-CoT, D = {most}, small student', 'small', f'kept_{most}', dict(samples=most, **student('student'))),
      'answers_small': ('answers only, small student', 'small', None, None)}


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
