"""Chains of thought of a teacher, kept where the answer is right, taught to a T5 (Magister et al. 2022, arXiv 2212.08410).

    python -m distill_jax.main --config=configs/magister.py              laptop: generated stories, a narrator as the teacher, CPU, minutes
    python -m distill_jax.main --config=configs/magister.py:tiny         seconds; the whole pipeline, for tests
    python -m distill_jax.main --config=configs/magister.py:full         openai/gsm8k, T5 v1.1 XL, an instruct model as the teacher: for a pod

The teacher is shown exemplars and the right answer as a hint, writes one chain a question, wrong answers are dropped; the student reads the bare
question and learns chain and answer with cross-entropy. Arms, all from the same base, with equal steps of equally many questions:
  cot         chains of the teacher without a hint, filtered          cot_20, cot_4   the same, a share of the questions
  unfiltered  the same chains, wrong ones too                          weak            chains of a weaker teacher, filtered
  hint        chains written with the hint, filtered                   gold            the true chains, all questions
  answers     answers only, all questions                              answers_kept    answers only, the questions that cot keeps
  answers_long  answers only, as many target tokens as cot learns (more steps)
Measured with greedy decoding: the answer behind the last `The answer is`; beside it a lenient grade, whether a text is complete, whether all of
its equations are true, and the grade after its equations are recomputed; once more with a calculator that writes along.
Sign test stated beforehand: cot above answers_kept on `test`; hint keeps more questions than cot; cot against unfiltered is reported.
Figures reached and times in configs/README.md.
"""
from ml_collections import ConfigDict

SHAPE = dict(model='encoder_decoder', width=48, layers=2, heads=2, mlp_width=96)
ADAMW = dict(lr=4e-3, warmup=20, decay='cosine', final=0.05, weight_decay=0.01, b2=0.98)
LAPTOP = dict(
    task=dict(task='stories', counts=dict(read=1500, train=2000, dev=100, test=200, test_longer=100)), weak_task=dict(right=0.35, lucky=0.15),
    splits=('test', 'test_longer'), new=dict(model=SHAPE, tokenizer=dict(bpe=448)), read_steps=2000, steps=1500, long_steps=11520, batch=16,
    length=36, source_length=32, read_length=24, answers_length=8, optim=ADAMW, max_new_tokens=52, answers_tokens=6, evaluate_batch=100, save=2000, log=20,
    validate=None)
BFLOAT16 = dict(params_dtype='bfloat16', overrides=dict(dtype='bfloat16'))
SIZES = {
    '': LAPTOP,
    'tiny': {**LAPTOP, **dict(
        task=dict(task='stories', counts=dict(read=24, train=48, dev=4, test=4, test_longer=4)), splits=('test',),
        new=dict(model={**SHAPE, 'width': 16, 'layers': 1, 'mlp_width': 16}, tokenizer=dict(bpe=320)), read_steps=2, steps=2, long_steps=3, batch=8,
        max_new_tokens=8, length=64, source_length=64, read_length=64, answers_length=16, answers_tokens=8, evaluate_batch=4, log=1,
        without=['kept_20', 'kept_4', 'written_weak', 'kept_weak',
                 *(name for arm in ('cot_20', 'cot_4', 'weak', 'gold', 'answers', 'answers_long') for name in (arm, f'evaluate_{arm}', f'evaluate_{arm}_calculator')),
                 *(f'evaluate_{arm}_calculator' for arm in ('unfiltered', 'hint'))])},
    # As published where that is known: T5, exemplars with the answer in them, right chains kept, the student chosen on held-out training questions.
    # From memory of the paper: v1.1, Adafactor, 1e-3, 128 questions a step, one greedy chain a question. Ours: who teaches, the number of steps.
    'full': {**LAPTOP, **dict(
        task=dict(task='gsm8k_cot', source='openai/gsm8k'), weak_task={}, splits=('test',),
        teacher=dict(load='Qwen/Qwen2.5-7B-Instruct', **BFLOAT16), weak=dict(load='Qwen/Qwen2.5-1.5B-Instruct', **BFLOAT16),
        base=dict(load='google/t5-v1_1-xl', overrides=dict(dtype='bfloat16', remat='full', dropout=0.1)), steps=2000, long_steps=20000, batch=128,
        length=512, source_length=512, answers_length=16, optim=dict(name='adafactor', lr=1e-3), max_new_tokens=320, answers_tokens=16,
        evaluate_batch=256, save=500, log=10, validate=dict(every=250, metric='accuracy', split='dev', count=256, patience=4, max_new_tokens=320),
        how=dict(mesh=dict(fsdp=-1)), teacher_how=dict(batch=128, mesh=dict(data=-1, tensor=4)))},
}
# arms that learn chains: (stage whose texts they learn, None: what people wrote; title); then those that learn answers only
CHAINS = dict(cot=('kept', 'CoT, filtered'), cot_20=('kept_20', 'CoT, filtered, 20 % of it'), cot_4=('kept_4', 'CoT, filtered, 4 % of it'),
              unfiltered=('all', 'CoT, not filtered'), weak=('kept_weak', 'CoT of a weaker teacher'), hint=('kept_hint', 'CoT with hint'),
              gold=(None, 'true chains'))
ANSWERS = dict(answers=(None, 'answers only'), answers_kept=('kept', 'answers only, kept questions'),
               answers_long=(None, 'answers only, as many target tokens'))


def get_config(size: str = '') -> ConfigDict:
  """The recipe at one of SIZES."""
  if size not in SIZES:
    raise ValueError(f'configs/magister.py has no size {size!r}; there is {", ".join(map(repr, SIZES))}')
  s, narrated = SIZES[size], size != 'full'
  c = ConfigDict()
  c.seed = 0
  c.title = 'Chains of thought into a T5'
  c.notes = ['The problems are generated stories, the teacher is their narrator: text by rule, some of it wrong on purpose.',
             'test: unseen numbers, people with unseen things; test_longer: one step more than was taught.'] if narrated else []
  c.tasks = _tasks(s, narrated)
  c.roles = {name: s[name] for name in ('new', 'base', 'teacher', 'weak') if name in s and (name != 'new' or narrated)}
  if narrated:
    c.roles.base = dict(stage='read', role='student')
  c.roles.update({f'student_{arm}': dict(stage=arm, role='student') for arm in (*CHAINS, *ANSWERS)})
  stages = {**_texts(s, narrated), **_training(s, narrated), **_evaluations(s)}
  c.stages, c.run = stages, [name for name in _order(stages) if name not in s.get('without', ())]
  c.compare = [
      ('evaluate_cot', 'evaluate_answers_kept', 'test'),      # stated beforehand: the first is better
      *(('evaluate_cot', f'evaluate_{other}', 'test') for other in ('answers', 'answers_long', 'unfiltered', 'weak')),
      ('evaluate_hint', 'evaluate_cot', 'test'), ('evaluate_gold', 'evaluate_cot', 'test'), ('evaluate_cot_calculator', 'evaluate_cot', 'test'),
      *(('evaluate_cot', 'evaluate_answers_kept', split) for split in s['splits'][1:])]
  return c


def _order(stages) -> list:
  """Texts, the base, then arm by arm what trains it and what measures it."""
  arms = ('base', 'cot', 'answers_kept', 'hint', 'unfiltered', 'gold', 'answers', 'weak', 'cot_20', 'cot_4', 'answers_long')
  measured = [name for arm in arms for name in (arm, f'evaluate_{arm}', f'evaluate_{arm}_calculator') if name in stages]
  return [*(name for name in stages if name not in measured), *measured]


def _tasks(s, narrated) -> dict:
  """By who reads or writes: the student of chains and the one of answers, the teacher, the one that is shown the answer, the weaker one."""
  of = lambda prompt, completion, **more: {**s['task'], 'prompt': prompt, 'completion': completion, **more}
  tasks = dict(cot=of('plain', 'answer_is'), answers=of('plain', 'answer'), teacher=of('few_shot', 'answer_is'), hinted=of('hint', 'answer_is'),
               weak=of('few_shot', 'answer_is', **s['weak_task']))
  return tasks | dict(read=of('plain', 'mixed')) if narrated else tasks


def _texts(s, narrated) -> dict:
  """What the teachers write, and what of it is kept and handed on without exemplars and hint."""
  def write(task, role):
    if narrated:
      return dict(stage='generate', narrated=True, task=task, split='train', samples=1)
    return dict(stage='generate', roles=dict(teacher=role), task=task, split='train', samples=1, temperature=0.0, max_new_tokens=s['max_new_tokens'],
                stop=('\nQ:',), how=s['teacher_how'])
  keep = lambda of, **more: dict(stage='grade', of=[of], task='cot', tasks=dict(student='cot'), **more)
  return dict(
      written=write('teacher', 'teacher'), written_hint=write('hinted', 'teacher'), written_weak=write('weak', 'weak'),
      kept=keep('written'), kept_20=keep('written', share=0.2), kept_4=keep('written', share=0.04), all=keep('written', keep='all', unfinished=True),
      kept_hint=keep('written_hint'), kept_weak=keep('written_weak'))


def _training(s, narrated) -> dict:
  how = dict(save=s['save'], log=s['log'], **s.get('how', {}))
  training = dict(stage='train', pack=False, batch=s['batch'], length=s['length'], source_length=s['source_length'], optim=s['optim'],
                  method=dict(method='sft'), how=how)
  student = {**training, 'roles': dict(student='base'), 'steps': s['steps'], **(dict(validate=s['validate']) if s['validate'] else {})}

  def arm(texts, task, title, **more):
    data = dict(split='train', target='gold') if texts is None else dict(of=[texts], target='written' if task == 'cot' else 'gold')
    return {**student, **data, 'task': task, 'title': title, **more}

  # one step after another story: what T5 brings along from its pretraining
  short = {**training, 'length': s['read_length'], 'source_length': s['read_length']}
  base = dict(read=dict(**short, roles=dict(student='new'), task='read', split='read', target='gold', steps=s['read_steps'], title='before the lessons'))
  chains = {name: arm(texts, 'cot', title) for name, (texts, title) in CHAINS.items()}
  answers = {name: arm(texts, 'answers', title, length=s['answers_length']) for name, (texts, title) in ANSWERS.items()}
  answers['answers_long']['steps'] = s['long_steps']
  return {**(base if narrated else {}), **chains, **answers}


def _evaluations(s) -> dict:
  asking = dict(stage='evaluate', splits=s['splits'], how=dict(batch=s['evaluate_batch']))
  chain, bare = dict(task='cot', max_new_tokens=s['max_new_tokens']), dict(task='answers', max_new_tokens=s['answers_tokens'])
  out = dict(evaluate_base=dict(**asking, **chain, roles=dict(student='base'), title='before the lessons'))
  for name, (_, title) in CHAINS.items():
    out[f'evaluate_{name}'] = dict(**asking, **chain, roles=dict(student=f'student_{name}'), title=title)
  for name in ('cot', 'unfiltered', 'weak', 'hint', 'gold'):
    out[f'evaluate_{name}_calculator'] = dict(**asking, **chain, roles=dict(student=f'student_{name}'), calculator=True,
                                              title=f'{CHAINS[name][1]}, calculator')
  for name, (_, title) in ANSWERS.items():
    out[f'evaluate_{name}'] = dict(**asking, **bare, roles=dict(student=f'student_{name}'), title=title)
  return out
