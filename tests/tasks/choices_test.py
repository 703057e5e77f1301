"""Tasks with options: generated families follow their world, real sets keep their splits apart."""
import collections
import gzip
import importlib
import json

import pytest

from distill_jax.tasks import TASKS

SMALL = dict(features=8, labels=8, carriers=4, classes=2, tasks=3, tested=2, examples=4, queries=2, shots=4, subjects=9, objects=3, relations=2, held=1, turns=1, lists=8)


def family(name, **more):
  return TASKS['families'](family=name, **{'counts': SMALL, **more})


def test_maps_are_functions_of_the_feature_drawn_anew_for_every_task():
  tables = []
  for tested, splits in ((False, ('train', 'dev')), (True, ('shots', 'dev', 'test'))):
    task = family('maps', tested=tested)
    seen = collections.defaultdict(dict)
    for split in splits:
      for e in task.examples(split):
        carrier, feature = e['input'].split()
        assert seen[e['task']].setdefault(feature, e['output']) == e['output'] and e['output'] in e['options'] and len(e['options']) == 2
    tables += [tuple(sorted(t.items())) for t in seen.values()]
    ids = [{e['id'] for e in task.examples(split)} for split in splits]
    assert not set.intersection(*ids[:2]) and all(ids)
  assert len(tables) == 5 and not set(tables[:3]) & set(tables[3:])
  full = TASKS['families'](family='maps', tested=True)
  assert len(list(full.examples('shots'))) == 32 * 24 and list(full.examples('test')) == list(full.examples('test'))
  assert list(full.examples('test')) != list(TASKS['families'](family='maps', tested=True, seed=1).examples('test'))


def test_texts_state_the_facts_of_all_relations():
  facts = {(e['subject'], e['task'].removeprefix('relation-'), e['output']) for tested in (False, True) for split in ('train', 'shots', 'dev', 'test')
           for e in family('relations', tested=tested).examples(split)}
  assert len(facts) == 27
  lines = '\n'.join(e['text'] for e in family('texts').examples('train'))
  told = '\n'.join(e['text'] for e in family('sentences').examples('train'))
  assert all(f'{s} {r}\n{o}' in lines and f'{s} {r} {o}.' in told for s, r, o in facts)
  held = {e['task'] for e in family('relations', tested=True).examples('test')}
  assert held and held.isdisjoint({e['task'] for e in family('relations').examples('train')})
  task = family('texts')
  e = next(iter(task.examples('train')))
  assert task.prompt(e) == '' and task.answer(e) == e['text'] and task.grade(e, e['text']) == 1


def test_lists_in_the_texts_are_maps_in_the_form_of_episodes():
  lists = [e['text'] for e in family('texts').examples('train') if e['id'].startswith('text/list/')]
  assert len(lists) == SMALL['lists']
  for text in lists:
    pairs = [block.split('\n') for block in text.split('\n\n\n')]
    told = [(shown.split(' ')[1], label) for shown, label in pairs]
    assert len(pairs) == 5 and len(dict(told)) == len(set(told)) == len(set(dict(told).values())) <= 2      # one label for each feature


def test_no_word_stands_for_two_things():
  lib = importlib.import_module('distill_jax.tasks.families')
  made = lib.world(0, lib.Counts())
  words = [*made.features, *made.labels, *made.carriers, *made.facts, *next(iter(made.facts.values())), *(o for several in made.objects.values() for o in several)]
  assert len(words) == len(set(words))


@pytest.mark.parametrize('keywords, says', [
    (dict(family='poems'), "'maps', 'relations', 'texts' or 'sentences'"), (dict(family='maps', counts=dict(classes=99)), '99 classes need as many')])
def test_bad_families(keywords, says):
  with pytest.raises(ValueError, match=says):
    TASKS['families'](**keywords)
  with pytest.raises(ValueError, match='give too few maps'):
    list(family('maps', counts=dict(SMALL, features=2, labels=2, tasks=9)).examples('train'))
  with pytest.raises(TypeError, match="counts takes no 'colours'"):
    TASKS['families'](family='maps', counts=dict(colours=3))


def lines(path, rows):
  with gzip.open(path, 'wt', encoding='utf-8') as file:
    file.write(''.join(json.dumps(row) + '\n' for row in rows))


def test_sets_hold_out_tasks_and_keep_splits_apart(tmp_path):
  lines(tmp_path / 'function_vectors.jsonl.gz', [dict(task=f't{n}', input=f'in {i}', output=f'o{i}') for n in range(10) for i in range(20)]
        + [dict(task='pick', input='hat, moth, ice', output='moth')])
  lines(tmp_path / 'instruction_induction.jsonl.gz', [dict(task='other', cause='x', effect='y')])
  make = lambda **more: TASKS['sets'](name='word_tasks', source=str(tmp_path), shots=4, **more)
  whole = {e['task'] for split in ('train', 'shots', 'dev', 'test') for e in make().examples(split)}
  parts = [{e['task'] for e in make(tested=True, fold=f).examples('shots')} for f in range(5)]
  assert len(whole) == 11 and set.union(*parts) == whole and sum(map(len, parts)) == 11
  assert {e['task'] for e in make(tested=False, fold=2).examples('shots')} == whole - parts[2]
  ids = [{e['id'] for e in make().examples(split)} for split in ('train', 'shots', 'dev', 'test')]
  assert sum(map(len, ids)) == len(set.union(*ids)) == 201
  e = next(e for e in make(only=('t3',)).examples('shots'))
  assert len(e['options']) == 8 and e['output'] in e['options']
  (pick,) = make(only=('pick',)).examples('shots')
  assert pick['options'] == ['hat', 'moth', 'ice']
  with pytest.raises(ValueError, match="holds no task 'poems'"):
    list(make(only=('poems',)).examples('train'))
  with pytest.raises(FileNotFoundError, match='no directory'):
    list(TASKS['sets'](name='snips', source=str(tmp_path / 'none')).examples('test'))
  with pytest.raises(ValueError, match="no 'poems'; there is"):
    TASKS['sets'](name='poems', source='x')


def test_facts_of_relations(tmp_path):
  lines(tmp_path / 'train.jsonl.gz', [dict(predicate_id=p, sub_label=f's{i}', obj_label=f'o{i % 3}', masked_sentence=f'{p} s{i} [MASK] .' if i else None)
                                      for p in ('P1', 'P2', 'P3') for i in range(12)])
  (tmp_path / 'relations.json').write_text(json.dumps(dict(
      P1=dict(label='a', template='[X] is in [Y] .'), P2=dict(label='b', template='[Y] has [X] .'), P3=dict(label='c', template='The c of [X] is [Y].'))))
  make = lambda **more: TASKS['facts'](source=str(tmp_path), shots=4, least=5, **more)
  every = [e for split in ('train', 'shots', 'dev', 'test') for e in make().examples(split)]
  assert {e['task'] for e in every} == {'P1', 'P3'} and len(every) == 24      # a decoder cannot complete P2
  e = every[0]
  assert e['options'] == ['o0', 'o1', 'o2'] and e['templates'] == ['<input> is in <label> .'] or e['task'] == 'P3'
  assert {e['task'] for e in make(last=False).examples('shots')} == {'P1', 'P2', 'P3'}
  texts, held = ({e['text'] for e in make(family='sentences').examples(split)} for split in ('train', 'dev'))
  assert texts and all('[MASK]' not in text for text in texts)
  tested = [e for e in make().examples('test')]
  assert tested and all(f'{e["task"]} {e["input"]} {e["output"]} .' not in texts for e in tested) and len(texts | held) > len(texts)
  # twelve facts of three objects, four of them shots: a query always finds one of another object beside it, and never four
  assert {e['task'] for e in make(beside=1).examples('test')} == {'P1', 'P3'} and not list(make(beside=4).examples('test'))
  assert {e['task'] for e in make(beside=4, family='sentences').examples('train')} == {'sentences'}
  with pytest.raises(FileNotFoundError, match='needs train.jsonl'):
    list(TASKS['facts'](source=str(tmp_path / 'none')).examples('test'))


def test_real_sets(shared):
  """Every option set holds its answer, whatever the set; BBH options are those of the question."""
  for name, folder in dict(snips='snips', sentiment='sentiment_sentences', bbh='bbh').items():
    found = list(TASKS['sets'](name=name, source=str(shared / 'data' / folder)).examples('test'))
    assert len(found) > 300 and all(e['output'] in e['options'] and len(set(e['options'])) == len(e['options']) > 1 for e in found)
  found = list(TASKS['sets'](name='bbh', source=str(shared / 'data' / 'bbh'), only=('date_understanding', 'navigate')).examples('test'))
  assert {tuple(e['options'][:2]) for e in found} == {('(A)', '(B)'), ('Yes', 'No')}
  facts = list(TASKS['facts'](source=str(shared / 'data' / 'trex_facts'), tested=True).examples('test'))
  assert len({e['task'] for e in facts}) >= 3 and all(e['output'] in e['outputs'] and e['output'] in e['options'] for e in facts)
