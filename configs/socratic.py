"""Socratic CoT: a problem is taken apart into sub-questions, and two small students learn to ask and to answer them.

    python -m distill_jax.main --config=configs/socratic.py           laptop: generated problems, narrated teacher, CPU, minutes (--seeds=3)
    python -m distill_jax.main --config=configs/socratic.py:tiny      seconds; the whole pipeline, for tests
    python -m distill_jax.main --config=configs/socratic.py:full      openai/gsm8k, an instruct teacher with a few-shot prompt, GPT-2 students: for a pod

Shridhar, Stolfo, Sachan 2022 (arXiv 2212.00193; ACL 2023 Findings). The teacher writes sub-questions and steps, texts with the right answer are kept; the
decomposer learns problem -> sub-questions, the solver (problem, what was asked and answered so far, sub-question) -> step. At test there is no
teacher: the decomposer asks, the solver answers one sub-question after the other, the last answer counts. Arms, each of as many optimizer steps of
as many rows in all: answers only; CoT; one student that writes sub-questions and steps in one pass (unified); CoT with the sub-questions in its prompt
(asked, behind the decomposer); decomposer + solver of half the size each (as many parameters in all as CoT has) and of full size each (twice as
many). Controls: CoT with twice the parameters; CoT of as few target tokens as decomposer and solver saw; oracle sub-questions, oracle answers; the
solver teacher-forced. Stated beforehand: decomposer + solver, half size each, above CoT on `test`, with calculator (sign test over seeds and problems).
The laptop's teacher is a narrator: templates, each step wrong with probability 0.2. Figures reached and times in configs/README.md.
"""
from ml_collections import ConfigDict

PARTS = ('unified', 'decomposer', 'solver', 'asked', 'cot', 'answer')
SHAPE = dict(model='transformer', layers=2, heads=4, max_length=512, norm='rms', tied=True, init='fan_in', positions='learned')
LAPTOP = dict(
    tasks=dict(source='bundled', families='sums', counts=dict(train=2000, dev=60, test=200, test_long=80), seed=1), splits=('test', 'test_long'), shots=0,
    models={name: dict(model={**SHAPE, **size}, tokenizer='bundled:teacher') for name, size in dict(
        half=dict(width=32, mlp_width=56), full=dict(width=48, mlp_width=128), double=dict(width=72, mlp_width=216)).items()},
    teach=dict(narrated=True, samples=2), cap=1, steps=3000, batch=3, length=208, lr=5e-3, warmup=50, evaluate_batch=50, part=300, save=1000, log=20,
    question_tokens=96, step_tokens=32, text_tokens=160)
SIZES = {
    '': LAPTOP,
    'tiny': {**LAPTOP, **dict(
        tasks=dict(source='bundled', families='sums', counts=dict(train=12, dev=2, test=4, test_long=2), seed=1), splits=('test',),
        models={name: dict(model={**SHAPE, **dict(layers=1, heads=2, width=16, mlp_width=16)}, tokenizer='bundled:teacher') for name in LAPTOP['models']}, steps=2, warmup=1,
        evaluate_batch=4, part=4, save=2, log=1, question_tokens=8, step_tokens=8, text_tokens=8, without=('cot_double', 'cot_tokens', 'full', 'bare', 'answer'))},
    # the paper's students are two GPT-2 of the size that CoT has (so the pair has twice the parameters; its control here is GPT-2 medium)
    'full': {**LAPTOP, **dict(
        tasks=dict(source='openai/gsm8k'), splits=('test',), shots=4,
        models=dict(full=dict(load='openai-community/gpt2'), double=dict(load='openai-community/gpt2-medium')), teacher=dict(
            load='Qwen/Qwen2.5-7B-Instruct', params_dtype='bfloat16', overrides=dict(dtype='bfloat16')),
        teach=dict(roles=dict(teacher='teacher'), samples=4, temperature=0.7, max_new_tokens=400, stop=('\n\n',), how=dict(batch=128, mesh=dict(data=-1, tensor=4))), cap=4,
        steps=12000, batch=32, length=768, lr=2e-5, warmup=200, evaluate_batch=512, part=512, save=1000, log=20, question_tokens=192, step_tokens=128, text_tokens=400,
        how=dict(mesh=dict(fsdp=-1)))},
}
# What one optimiser step of CoT holds of target tokens against the mean of a decomposer's and a solver's, of the same rows: 0.59 on the laptop's sums, 0.57 on the stories that it was first measured on.
TOKENS = 0.57


def get_config(size: str = '') -> ConfigDict:
  """The recipe at one of SIZES."""
  if size not in SIZES:
    raise ValueError(f'configs/socratic.py has no size {size!r}; there is {", ".join(map(repr, SIZES))}')
  s = SIZES[size]
  c = ConfigDict()
  c.seed = 0
  c.title = 'Socratic CoT'
  generated = s['tasks']['source'] == 'bundled'
  c.notes = ['The problems are generated, their sub-questions templates; the teacher is a narrator by rule whose steps are wrong with probability 0.2.',
             'test: unseen sums of 2 to 4 steps; test_long: 5 or 6 steps, which training never has.'] if generated else []
  c.tasks = {part: dict(task='socratic', part=part, **s['tasks']) for part in PARTS}
  c.tasks.asking = dict(task='socratic', shots=s['shots'], **s['tasks'])
  c.roles = {**s['models'], **(dict(teacher=s['teacher']) if 'teacher' in s else {})}
  c.stages, c.run = {}, []
  add(c, 'written', stage='generate', task='asking', split='train', part=500, **s['teach'])
  for part in PARTS:
    add(c, f'kept_{part}', stage='grade', of=['written'], task='unified', tasks=dict(student=part), cap=s['cap'])
  pairs = [name for name in ('half', 'full') if name in s['models']]
  # arm: part of the task, model, share of the steps; the two of a pair share them
  arms = dict(answer=('answer', 'full', 1.0), cot=('cot', 'full', 1.0), cot_double=('cot', 'double', 1.0), cot_tokens=('cot', 'full', TOKENS), unified=('unified', 'full', 1.0))
  arms |= {f'{part}_{model}': (part, model, 0.5) for model in pairs for part in ('decomposer', 'solver')}
  arms[f'asked_{pairs[0]}'] = ('asked', pairs[0], 0.5)
  for name, arm in arms.items():
    train(c, s, name, *arm)
  measure(c, s, pairs)
  pair = f'pair_{pairs[0]}'
  c.compare = [(pair, 'evaluate_cot', 'test')]      # the claim; the others explain it
  c.compare += [(pair, other, 'test') for other in ('evaluate_cot_tokens', 'evaluate_unified', f'asked_{pairs[0]}')] + [(f'{pair}_bare', 'evaluate_cot_bare', 'test')]
  c.compare += [('pair_full', 'evaluate_cot_double', 'test')] + [(pair, 'evaluate_cot', 'test_long')] * ('test_long' in s['splits'])
  if 'without' in s:      # fewer arms, for tests
    c.run = [name for name in c.run if not name.endswith(s['without'])]
    c.compare = [entry for entry in c.compare if entry[0] in c.run and entry[1] in c.run]
  return c


def add(c, name, **stage) -> None:
  """One more stage, run behind those before it."""
  c.stages[name] = stage
  c.run.append(name)


def train(c, s, name, part, model, share) -> None:
  """Trains an arm's student, the role `name`."""
  optim = dict(lr=s['lr'], warmup=s['warmup'], decay='cosine', final=0.05, weight_decay=0.05, b2=0.98)
  add(c, f'train_{name}', stage='train', of=[f'kept_{part}'], roles=dict(student=model), task=part, method=dict(method='sft'), steps=max(int(s['steps'] * share), 1),
      batch=s['batch'], length=s['length'], optim=optim, how=dict(save=s['save'], log=s['log'], **s.get('how', {})), title=name.replace('_', ' '))
  c.roles[f'student_{name}'] = dict(stage=f'train_{name}', role='student')


def measure(c, s, pairs) -> None:
  """Every arm on the held-out splits; the main ones without calculator too."""
  common = dict(splits=s['splits'], part=s['part'], how=dict(batch=s['evaluate_batch']))

  def whole(name, part, title, calculator=True, **more):
    add(c, f'evaluate_{name}', stage='evaluate', task=part, roles=dict(student=f'student_{more.pop("of", name)}'), calculator=calculator, title=title,
        **{**common, 'max_new_tokens': s['text_tokens'], **more})

  def asked(name, title, tasks, calculator=True, **roles):
    add(c, name, stage='dialogue', task='unified', tasks=tasks, roles={role: f'student_{who}' for role, who in roles.items()}, calculator=calculator, title=title,
        question_tokens=s['question_tokens'], max_new_tokens=s['text_tokens'] if tasks.get('solver') == 'asked' else s['step_tokens'], **common)

  whole('answer', 'answer', 'answers only', calculator=False, max_new_tokens=16)
  whole('cot', 'cot', 'CoT')
  whole('cot_bare', 'cot', 'CoT, no calculator', calculator=False, of='cot')
  whole('cot_double', 'cot', 'CoT, twice the parameters')
  whole('cot_tokens', 'cot', 'CoT, as few target tokens')
  whole('unified', 'unified', 'unified')
  whole('unified_bare', 'unified', 'unified, no calculator', calculator=False, of='unified')
  both, said = dict(decomposer='decomposer', solver='solver'), dict(half='two of half the size', full='two of full size')
  for model in pairs:
    names = dict(decomposer=f'decomposer_{model}', solver=f'solver_{model}')
    asked(f'pair_{model}', f'decomposer + solver, {said[model]}', both, **names)
  model = pairs[0]
  names = dict(decomposer=f'decomposer_{model}', solver=f'solver_{model}')
  asked(f'pair_{model}_bare', f'decomposer + solver, {said[model]}, no calculator', both, calculator=False, **names)
  asked(f'asked_{model}', 'CoT behind the decomposer\'s sub-questions', dict(decomposer='decomposer', solver='asked'), decomposer=names['decomposer'], solver=f'asked_{model}')
  asked('oracle_questions', 'gold sub-questions + solver', dict(solver='solver'), solver=names['solver'])
  asked('oracle_answers', 'decomposer + gold answers', dict(decomposer='decomposer'), calculator=False, decomposer=names['decomposer'])
  whole('forced', 'solver', 'solver alone, per step, gold steps before it', of=f'solver_{model}', max_new_tokens=s['step_tokens'])
