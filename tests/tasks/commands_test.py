"""Commands: names that only the context tells, splits that share nothing, the same on every machine."""
import hashlib
import random

import pytest

from distill_jax.tasks import TASKS
from distill_jax.tasks.commands import ACTIONS, OPENINGS, VALUES, episode


def test_the_same_everywhere_and_apart():
  made = TASKS['commands'](counts=dict(train=60, dev=10, test=20))
  splits = {split: list(made.examples(split)) for split in ('train', 'dev', 'test')}
  assert [len(rows) for rows in splits.values()] == [60, 10, 20]
  questions = [e['question'] for rows in splits.values() for e in rows]
  assert len(set(questions)) == 90 and len({e['id'] for rows in splits.values() for e in rows}) == 90
  assert splits['train'] == list(TASKS['commands'](counts=dict(train=80, dev=10, test=20)).examples('train'))[:60]
  assert splits['train'] != list(TASKS['commands'](seed=1, counts=dict(train=60)).examples('train'))
  said = hashlib.sha256('\n'.join(f'{e["question"]}\t{e["target"]}' for e in splits['train']).encode()).hexdigest()[:8]
  assert said == SAID, 'another machine made other commands'


SAID = 'c8118e0c'


def test_a_form_is_the_name_of_its_action_and_the_values():
  made, names = TASKS['commands'](), {}
  for e in (*made.examples('train'), *made.examples('test')):
    *values, opening, verb = e['question'].split()
    a, b, *rest = e['target'].split()
    assert rest == values and opening in OPENINGS and verb in next(words for words in ACTIONS if words[0] == e['action'])
    assert names.setdefault(e['action'], (a, b)) == (a, b)
    assert len({slot for slot, known in VALUES.items() for v in values if v in known}) == len(values) in (1, 2, 3)
  assert len(set(names.values())) == len(names) == len(ACTIONS)
  assert made.prompt(e) == e['question'] + '\t' and made.grade(e, f'{made.answer(e)} ') == 1.0 and made.grade(e, e['target'] + ' ana') == 0.0


def test_every_episode_has_names_of_its_own():
  found = set()
  for number in range(60):
    names = {}
    for line in episode(random.Random(str(number)), examples=8).split('\n'):
      question, form = line.split('\t')
      action = next(words[0] for words in ACTIONS if question.split()[-1] in words)
      assert names.setdefault(action, form.split()[:2]) == form.split()[:2]
    assert 1 <= len(names) <= 4
    found |= {(action, tuple(name)) for action, name in names.items() if action == 'repair'}
  assert len(found) > 3


def test_what_is_not_there():
  with pytest.raises(ValueError, match="no split 'valid'; there is episodes, train, dev, test"):
    list(TASKS['commands']().examples('valid'))
  with pytest.raises(ValueError, match="no split 'valid'"):
    TASKS['commands'](counts=dict(valid=3))
