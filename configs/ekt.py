"""Programs that pass: a teacher writes programs for word problems, those whose result is right are kept, a student learns them (EKT).

    python -m distill_jax.main --config=configs/ekt.py --seeds=3     laptop: generated problems and bundled checkpoints, CPU, minutes
    python -m distill_jax.main --config=configs/ekt.py:distinct      every different passing program, not the first one alone
    python -m distill_jax.main --config=configs/ekt.py:temperatures  all arms at three temperatures on dev and test: the best of each on dev
    python -m distill_jax.main --config=configs/ekt.py:tiny          seconds; the whole pipeline, for tests
    python -m distill_jax.main --config=configs/ekt.py:full          openai/gsm8k, GPT-J teaches GPT-Neo-1.3B, as the paper has it: for a pod

Azerbayev et al. 2022, Explicit Knowledge Transfer (arXiv 2211.16740). The teacher reads three examples before each question; of its samples the
first that passes is kept. Arms of equal steps, rows and order of data: EKT (cross-entropy on question and kept program); logit KD on the same
pairs (cross-entropy and KL to the teacher's distribution at every token, 1 : 1), the teacher reading the bare text as in the paper; the same,
the teacher reading its three examples first; expert iteration (the student is its own teacher, each round starts from the base and asks for
what is unsolved); first samples unfiltered; kept programs dealt to the wrong questions. Beside them student and teacher with the examples and
without training. pass@k of 100 samples at one temperature for all, and greedy.

The sign test, said before it was run: EKT above logit KD (bare) on pass@100 and on accuracy (pass@1 of samples); EKT above unfiltered on both.
KD with the examples shown, expert iteration, the student with examples and shuffled pairs are reported. Figures and times: configs/README.md.
"""
from ml_collections import ConfigDict

from distill_jax.tasks.programs import STOP

LAPTOP = dict(
    data=dict(source='bundled', numbers=True, counts=dict(train=400, dev=50, test=100), seed=1, check='strict'), teacher='bundled:program_teacher',
    base='bundled:program_student', samples=6, cap=1, temperature=0.6, max_new_tokens=32, prompt_tokens=None, splits=('test',), count=60,
    n=100, ks=(1, 10, 100), temperatures=(), greedy=True, arms=('ekt', 'kd', 'kd_shown', 'unfiltered', 'shuffled'), loss_on_prompt=True, length=112,
    asked_length=256, steps=200, batch=8, optim=dict(lr=3e-3, warmup=20, decay='cosine', final=0.05, weight_decay=0.05, b2=0.98), rounds=2, round_samples=4,
    generate_batch=256, evaluate_batch=512, label_batch=32, save=200, log=20, part=300)
SIZES = {
    '': LAPTOP,
    'distinct': {**LAPTOP, **dict(cap=None)},
    'temperatures': {**LAPTOP, **dict(temperatures=(0.3, 1.0))},
    'tiny': {**LAPTOP, **dict(
        data=dict(source='bundled', numbers=True, counts=dict(train=16, dev=4, test=16), seed=1, check='strict'), samples=8, n=8, ks=(1, 8), greedy=False,
        arms=('ekt', 'kd_shown', 'shuffled'), steps=2, rounds=1, round_samples=8, generate_batch=128, evaluate_batch=128, label_batch=8, save=2, log=1,
        part=16)},      # equal numbers of questions and samples: what asks in the same way shares its programs
    # k, T, prompt budget, lengths, check, optimiser, batch and rounds as in the paper's runs; steps: theirs for the set of GPT-J, 140 epochs
    'full': {**LAPTOP, **dict(
        data=dict(source='openai/gsm8k', check='paper'), teacher='EleutherAI/gpt-j-6b', base='EleutherAI/gpt-neo-1.3B', samples=100,
        count=None, max_new_tokens=150, prompt_tokens=756, length=400, asked_length=1024, pack=False, steps=12180, batch=32,
        optim=dict(lr=1e-4, warmup=100, decay='linear', weight_decay=0.1), rounds=10, round_samples=100, save=500, part=512, label_dtype='float16',
        teacher_as=dict(params_dtype='bfloat16', overrides=dict(dtype='bfloat16')), base_as=dict(overrides=dict(dtype='bfloat16')),
        training_how=dict(mesh=dict(fsdp=-1)), label_how=dict(mesh=dict(fsdp=-1)), teacher_how=dict(mesh=dict(data=-1, tensor=4)))},
}
# arm: (its title, the stage whose set it learns, the stage whose labels; None: cross-entropy alone)
ARMS = dict(
    ekt=('EKT', 'kept', None),
    kd=('logit KD, teacher reads the bare text', 'kept', 'label_kd'),
    kd_shown=('logit KD, teacher reads its examples first', 'kept', 'label_kd_shown'),
    unfiltered=('first samples, unfiltered', 'unfiltered_set', None),
    shuffled=('kept programs at wrong questions', 'shuffled_set', None))


def get_config(size: str = '') -> ConfigDict:
  """The recipe at one of SIZES."""
  if size not in SIZES:
    raise ValueError(f'configs/ekt.py has no size {size!r}; there is {", ".join(map(repr, SIZES))}')
  s = SIZES[size]
  c = ConfigDict()
  c.seed = 0
  c.title = 'Programs that pass (EKT)'
  c.notes = ['The problems are generated (bundled), not GSM8K; teacher and student are small bundled models that know such problems only.',
             'Prompts name the numbers of the question (n0 = 14), which the paper leaves to the model: models this small do not copy them yet.',
             'test: unseen combinations of steps and unseen numbers. All systems are sampled at the same temperature.'
             ] if s['data']['source'] == 'bundled' else []
  c.tasks = dict(programs=dict(task='programs', **s['data']), few_shot=dict(task='programs', prompt='few_shot', **s['data']))
  c.roles = dict(teacher=dict(load=s['teacher'], **s.get('teacher_as', {})), base=dict(load=s['base'], **s.get('base_as', {})))
  asking = dict(stage='generate', split='train', temperature=s['temperature'], max_new_tokens=s['max_new_tokens'], stop=STOP,
                prompt_tokens=s['prompt_tokens'], part=s['part'])
  sorting = dict(stage='grade', tasks=dict(student='programs'), task='few_shot')
  c.stages = dict(
      generate=dict(**asking, roles=dict(teacher='teacher'), task='few_shot', samples=s['samples'],
                    how=dict(batch=s['generate_batch'], **s.get('teacher_how', {}))),
      kept=dict(**sorting, of=['generate'], cap=s['cap']),
      unfiltered_set=dict(**sorting, of=['generate'], keep='all', cap=1, unfinished=True),
      shuffled_set=dict(**sorting, of=['generate'], keep='shuffled', cap=s['cap']))
  c.run = ['generate', 'kept', 'unfiltered_set', 'shuffled_set']
  arms = {arm: ARMS[arm] for arm in s['arms']}
  for arm, (title, learns, label) in arms.items():
    _train(c, s, arm, title, [learns], label)
  expert = _expert_iteration(c, s, asking, sorting)
  systems = {arm: (f'{arm}_student', title, 'programs') for arm, (title, *_) in arms.items()} | dict(
      expert=(expert, 'expert iteration', 'programs'), few_shot=('base', 'student with examples, no training', 'few_shot'),
      teacher=('teacher', 'teacher with examples', 'few_shot'))
  for name, (role, title, task) in systems.items():
    _evaluate(c, s, name, role, title, task)
  c.run = sorted(c.run, key=lambda name: name.startswith('greedy_'))      # what is compared comes first
  c.compare = [('evaluate_ekt', f'evaluate_{other}', split, metric) for other in (*[arm for arm in arms if arm != 'ekt'], 'expert', 'few_shot')
               for split in s['splits'] for metric in (f'pass@{s["ks"][-1]}', 'accuracy')]
  return c


def _train(c, s, arm, title, learns, label):
  """An arm of `steps` steps from the base, its labels before it."""
  method, of, roles = dict(method='sft'), learns, dict(student='base')
  if label is not None:
    # CE and KL 1 : 1 over every token that counts, at temperature 1; the whole distribution, kept as hidden states
    method, of, roles = dict(method='logit_kd', alpha=0.5), [label], dict(student='base', teacher='teacher')
    shown = dict(tasks=dict(asked='few_shot'), asked_length=s['asked_length']) if label == 'label_kd_shown' else {}
    c.stages[label] = dict(stage='label', of=learns, roles=roles, method=method, length=s['length'], loss_on_prompt=s['loss_on_prompt'], **shown,
                           dtype=s.get('label_dtype', 'float32'), how=dict(batch=s['label_batch'], **s.get('label_how', {})))
    c.run.append(label)
  c.stages[arm] = dict(
      stage='train', of=of, roles=roles, task='programs', method=method, steps=s['steps'], batch=s['batch'], length=s['length'],
      pack=s.get('pack', True), loss_on_prompt=s['loss_on_prompt'], title=title,
      optim=s['optim'],
      how=dict(save=s['save'], log=s['log'], **s.get('training_how', {})))
  c.roles[f'{arm}_student'] = dict(stage=arm, role='student')
  c.run.append(arm)


def _expert_iteration(c, s, asking, sorting):
  """The student teaches itself: its own passing programs, first with the examples shown, then of each round's student for what is unsolved."""
  sets, role, task = [], 'base', 'few_shot'
  for number in range(s['rounds'] + 1):
    if number:
      _train(c, s, f'expert_{number}', f'expert iteration, round {number}', list(sets), None)
      role, task = f'expert_{number}_student', 'programs'
      if number == s['rounds']:
        return role
    unsolved = dict(of=list(sets), unsolved=True) if sets else {}
    c.stages[f'expert_texts_{number}'] = dict(**asking, **unsolved, roles=dict(teacher=role), task=task, samples=s['round_samples'],
                                              how=dict(batch=s['generate_batch']))
    c.stages[f'expert_set_{number}'] = dict(**{**sorting, 'task': task}, of=[f'expert_texts_{number}'], cap=1, empty=bool(sets))
    c.run += [f'expert_texts_{number}', f'expert_set_{number}']
    sets.append(f'expert_set_{number}')


def _evaluate(c, s, name, role, title, task):
  """Samples at the common temperature, greedy texts, and the other temperatures where they are asked for."""
  asked = dict(stage='evaluate', task=task, count=s['count'], roles={'teacher' if role == 'teacher' else 'student': role}, part=s['part'],
               max_new_tokens=s['max_new_tokens'], stop=STOP if task == 'few_shot' else (), prompt_tokens=s['prompt_tokens'],
               how=dict(batch=s['evaluate_batch'], **s.get('evaluate_how', {})))
  sampled = dict(samples=s['n'], ks=s['ks'])
  stages = {f'evaluate_{name}': dict(**asked, **sampled, temperature=s['temperature'], splits=s['splits'], title=title)}
  if s['greedy']:
    stages[f'greedy_{name}'] = dict(**asked, splits=s['splits'], title=f'{title}, greedy')
  if s['temperatures']:
    stages[f'dev_{name}'] = dict(**asked, **sampled, temperature=s['temperature'], splits=('dev',), title=f'{title}, T={s["temperature"]}')
  for temperature in s['temperatures']:
    stages[f'evaluate_{name}_{temperature}'.replace('.', '_')] = dict(
        **asked, **sampled, temperature=temperature, splits=('dev', *s['splits']), title=f'{title}, T={temperature}')
  c.stages.update(stages)
  c.run += list(stages)
