"""The model card: what a reader finds in it."""
import re

import pytest

from distill_jax.core import marks
from distill_jax.stages import card as card_lib, roles

FACTS = dict(proved=True, max_logit_difference=2.1e-5, same_greedy=True)


@pytest.fixture
def workdir(tmp_path):
  """What a run leaves beside its export stage."""
  marks.write_json(tmp_path / 'config.json', dict(
      title='A recipe', seed=3, notes=['Problems are generated.'], tasks=dict(sums=dict(task='gsm8k', source='bundled')),
      roles=dict(teacher=dict(load='org/teacher-7B'), base=dict(load='bundled:student'), made=dict(stage='distill', role='student')),
      stages=dict(
          generate=dict(stage='generate', roles=dict(teacher='teacher'), task='sums', samples=2),
          distill=dict(stage='train', of=['generate'], roles=dict(student='base'), steps=10, optim=dict(lr=0.003), title='Distilled', stop=['a|b']),
          other=dict(stage='train', roles=dict(student='base'), steps=99),
          good=dict(stage='evaluate', roles=dict(student='made')), export=dict(stage='export', of=['good'], roles=dict(student='made'))),
      run=['generate', 'distill', 'good', 'export']))
  marks.write_json(tmp_path / 'run.json', dict(command='python -m distill_jax.main --config=x.py', versions=dict(jax='0.10'), devices='8 x TPU v5e'))
  for name, summary in dict(distill=dict(examples=1234), good=dict(kind='evaluate', title='Distilled', splits=dict(
      test=dict(n=200, accuracy=0.425, low=0.36, high=0.49)))).items():
    (tmp_path / name).mkdir()
    marks.write_json(tmp_path / name / 'DONE', dict(summary=summary))
  return tmp_path


def made(small, workdir, **more):
  role = roles.load_role(small.student)
  return card_lib.card('student', role, **{**dict(
      out=workdir / 'export', inputs=dict(good=workdir / 'good'), load=str(workdir / 'distill' / 'student'), form='merged', dtype='bfloat16',
      about='It adds.', prompt='1 + 1', base='', facts=FACTS), **more})


def test_a_card_says_how_the_weights_were_made_and_what_they_reach(small, workdir):
  text = made(small, workdir)
  head, body = re.fullmatch(r'---\n(.*?)\n---\n(.*)', text, re.DOTALL).groups()
  assert 'library_name: transformers' in head and '# license:' in head and 'base_model' not in head
  for part in ('# Distilled\n', 'It adds.', 'stored as bfloat16', 'Recipe: A recipe, seed 3.', 'python -m distill_jax.main --config=x.py',
               '* Problems are generated.', 'teacher: load org/teacher-7B', 'student: load bundled:student', 'source bundled', '1,234 examples',
               'steps 10', 'optim (lr 0.003)', 'On 8 x TPU v5e; jax 0.10.', '| Distilled | test | 200 | 42.5 [36.0, 49.0] |', '2.1e-05', 'greedy texts are equal',
               "tokenizer('1 + 1'", '## Licence'):
    assert part in body, part
  assert '99' not in body and 'other' not in body.split('## Licence')[0], 'a stage that these weights did not come from'
  rows = [line for line in body.splitlines() if line.startswith('| ')]
  assert {len(re.findall(r'(?<!\\)\|', line)) for line in rows[:3]} == {6}, 'a bar inside a cell is escaped'


def test_a_card_without_a_recipe_or_a_proof(small, tmp_path):
  text = made(small, tmp_path, inputs={}, load='x/y', facts={**FACTS, 'proved': 'not proved: torch is missing', 'max_logit_difference': None})
  assert '# student' in text and 'How it was made' not in text and 'measured' not in text and 'Not proved: torch is missing.' in text


def test_a_card_of_an_adapter_names_its_base(small, workdir):
  role = roles.load_role({**small.student, 'lora': dict(rank=2)})
  text = card_lib.card('student', role, out=workdir / 'export', inputs={}, load=None, form='adapter', dtype='float32', about='', prompt='a',
                       base='org/base-1B', facts=FACTS)
  assert 'base_model: org/base-1B' in text and 'library_name: peft' in text and "from_pretrained('org/base-1B'), DIR)" in text
