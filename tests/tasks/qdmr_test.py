"""QDMR: the two ways to write it, its logical form, and the tasks on real data."""
import ast
import gzip
import json

import pytest

from distill_jax.tasks import TASKS, qdmr


def test_the_format_of_prompts_and_back():
  assert qdmr.numbered('return seas ;return #1') == '1#) return seas 2#) return #1'
  assert qdmr.plain('1#) return seas 2#) return #1') == 'return seas ;return #1'
  assert qdmr.numbered('return  seas;return #1 ; ') == '1#) return seas 2#) return #1'


@pytest.mark.parametrize('one, other', [
    ('return the flights ;return #1 from  Denver', 'return flight ;return #1 that are from denver'),
    ('return flights ;return #1 from denver ;return #2 to boston', 'return flights ;return #1 to boston ;return #2 from denver'),
    ('return cats ;return dogs ;return #1 , #2', 'return dogs ;return cats ;return #1 , #2'),
    ('return cats ;return dogs ;return number of #1 ;return number of #2 ;return the difference of #3 and #4',
     'return dogs ;return cats ;return how many #2 ;return number of #1 ;return the difference of #3 and #4'),
    ('return cars ;return weights of #1 ;return #1 where #2 is lowest', 'return cars ;return weights of #1 ;return #1 where #2 is the smallest'),
    ('return cars ;return #1 that are red ;return #1 besides #2', 'return cars ;return #1 that are red ;return #1 except #2'),
    ('return cubes ;return colors of #1 ;return colors of #1 ;return if #2 is the same as #3', 'return cubes ;return colors of #1 ;return if #2 is the same as #2'),
    ('return cubes ;return number of #1 ;return if #2 is equal to two', 'return cubes ;return number of #1 ;return if #2 is equal to 2'),
])
def test_one_form(one, other):
  assert qdmr.same(one, other)


@pytest.mark.parametrize('one, other', [
    ('return flights ;return #1 from denver', 'return flights ;return #1 to denver'),
    ('return flights ;return #1 from denver', 'return flights ;return #1 from denver ;return number of #2'),
    ('return cats ;return dogs ;return number of #1 ;return number of #2 ;return the difference of #3 and #4',
     'return cats ;return dogs ;return number of #1 ;return number of #2 ;return the difference of #4 and #3'),
    ('return cars ;return #1 that are red ;return #1 besides #2', 'return cars ;return #1 that are red ;return #2 besides #1'),
    ('return cars ;return weights of #1 ;return #1 where #2 is lowest', 'return cars ;return weights of #1 ;return #1 where #2 is highest'),
    ('return cats ;return #1 , #2', 'return cats ;return #1 , #2'),      # a reference to itself: no decomposition
    ('', ''),
])
def test_two_forms(one, other):
  assert not qdmr.same(one, other)


def test_operators_are_those_of_the_annotators(shared):
  """On all labelled decompositions, against the operators that Break gives."""
  counted = agree = read = total = 0
  for line in gzip.open(shared / 'data' / 'break' / 'qdmr_dev.jsonl.gz', 'rt'):
    row = json.loads(line)
    total += 1
    assert qdmr.numbered(row['decomposition']) == qdmr.numbered(qdmr.plain(qdmr.numbered(row['decomposition'])))
    try:
      steps = qdmr.steps(row['decomposition'])
    except ValueError:
      continue
    read += 1
    made = []
    for step, operator in zip(steps, ast.literal_eval(row['operators'])):
      made.append(qdmr._expression(step, lambda ref: made[ref - 1]))
      counted, agree = counted + 1, agree + (made[-1][0] == operator)
  assert total - read == 4 and agree / counted > 0.98


def test_break(shared):
  made = TASKS['break_qdmr'](source=str(shared / 'data' / 'break'))
  splits = {split: list(made.examples(split)) for split in ('train', 'dev', 'test')}
  assert [len(rows) for rows in splits.values()] == [6200, 795, 765]
  assert not {e['id'] for e in splits['train']} & {e['id'] for e in splits['test']}
  e = next(e for e in splits['train'] if e['question'] == 'what flights are available tomorrow from denver to philadelphia')
  assert made.prompt(e) + made.answer(e) == (
      'what flights are available tomorrow from denver to philadelphia\t'
      '1#) return flights 2#) return #1 from denver 3#) return #2 to philadelphia 4#) return #3 if available')
  assert made.grade(e, ' return flights 2#) return #1 to philadelphia 3#) return #2 from denver 4#) return #3 if available') == 1.0
  assert made.grade(e, ' return flights 2#) return #1 to philadelphia') == 0.0
  exact = TASKS['break_qdmr'](source=str(shared / 'data' / 'break'), metric='exact')
  assert exact.grade(e, exact.answer(e)) == 1.0 and exact.grade(e, ' return flights 2#) return #1 to philadelphia 3#) return #2 from denver') == 0.0
  with pytest.raises(ValueError, match="metric='bleu': 'form' or 'exact'"):
    TASKS['break_qdmr'](source='x', metric='bleu')
  with pytest.raises(FileNotFoundError, match='no qdmr_dev.jsonl.gz at nowhere'):
    list(TASKS['break_qdmr'](source='nowhere').examples('train'))


def test_smcalflow_is_split_by_dialogue(shared):
  made, held = TASKS['smcalflow'](source=str(shared / 'data' / 'smcalflow')), {}
  for line in gzip.open(shared / 'data' / 'smcalflow' / 'valid_turns.jsonl.gz', 'rt'):
    row = json.loads(line)
    held.setdefault((' '.join(row['user'].split()), ' '.join(row['lispress'].split())), set()).add(row['dialogue_id'])
  counts, seen = {}, {}
  for split in ('train', 'dev', 'test'):
    rows = list(made.examples(split))
    counts[split] = len(rows)
    seen[split] = set().union(*(held[e['question'], e['target']] for e in rows if len(held[e['question'], e['target']]) == 1))
  assert sum(counts.values()) == 13496 and counts['train'] > 10000 and counts['test'] > 1000
  assert not seen['train'] & seen['test'] and not seen['train'] & seen['dev']
  e = rows[0]
  assert made.grade(e, f' {e["target"]} <|endoftext|> more') == 1.0 and made.grade(e, e['target'] + ')') == 0.0
