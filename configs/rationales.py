"""Rationales that real teachers wrote, graded: PaLM 540B on SVAMP and CommonsenseQA, Codex on twelve tasks of BIG-Bench Hard.

    python -m distill_jax.main --config=configs/rationales.py:DIR --workdir=runs/rationales        DIR/svamp, DIR/commonsense_qa, DIR/bbh; a minute

DIR/svamp/train.jsonl(.gz) and DIR/commonsense_qa/train.jsonl(.gz): records with `palm_540b_cot` (Hsieh et al. 2023, google-research
distilling-step-by-step); DIR/bbh: tasks/NAME.json(.gz) and code_davinci_002_cot.jsonl.gz (suzgunmirac/BIG-Bench-Hard). What is kept is handed on
as what a student of Fine-tune-CoT learns (`question ###` -> ` rationale --> gold`). Counts reached: configs/README.md.
"""
import pathlib

from ml_collections import ConfigDict

CODEX = ('boolean_expressions', 'date_understanding', 'logical_deduction_three_objects', 'multistep_arithmetic_two', 'navigate', 'object_counting',
         'penguins_in_a_table', 'reasoning_about_colored_objects', 'sports_understanding', 'tracking_shuffled_objects_three_objects', 'web_of_lies',
         'word_sorting')


def get_config(folder: str = '') -> ConfigDict:
  """The recipe; folder: the directory that holds svamp, commonsense_qa and bbh."""
  where = pathlib.Path(folder or 'data')
  c = ConfigDict()
  c.seed = 0
  c.title = 'Rationales of real teachers, graded'
  sets = dict(svamp=(dict(task='svamp', reads='value'), 'svamp/train.jsonl.gz'),
              commonsense_qa=(dict(task='commonsense_qa', reads='bracketed'), 'commonsense_qa/train.jsonl.gz'),
              **{f'bbh_{name}': (dict(task='bbh', name=name), 'bbh/code_davinci_002_cot.jsonl.gz') for name in CODEX})
  tasks, stages = {}, {}
  for name, (task, file) in sets.items():
    source = str(where / file.split('/')[0])
    tasks[name] = dict(**task, source=source, completion='answer_is', prompt='plain')
    tasks[f'{name}_student'] = dict(**task, source=source, completion='ft_cot_token', prompt='marked', written='answer_is')
    stages[f'{name}_written'] = dict(stage='generate', task=name, split='all', held_out='test', recorded=str(where / file))
    stages[f'{name}_kept'] = dict(stage='grade', of=[f'{name}_written'], task=name, tasks=dict(student=f'{name}_student'), dedupe=False)
  c.tasks, c.roles, c.stages, c.run = tasks, {}, stages, list(stages)
  return c
