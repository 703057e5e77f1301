"""Episodes: prompts byte for byte as the protocols have them, draws by (seed, id, draw), cuts, bad input."""
import collections

import pytest

from distill_jax.data import episodes as lib, rows as rows_lib


def example(name, given, output, task='t', **more):
  return dict(id=name, task=task, input=given, output=output, **more)


POOL = [example(f'{t}{n}', f'{t} {n}', 'xyz'[n % 3], task=t) for t in 'AB' for n in range(9)]


def test_the_prompt_of_metaical_byte_for_byte():
  one = lib.Episode(example('2', 'b', 'N'), (example('1', 'a', 'P'),))
  assert lib.write(one) == ('a\nP\n\n\nb', '\nN')
  two = one._replace(shown=(example('0', 'z', 'Q'), example('1', 'a', 'P')))
  assert lib.write(two) == ('z\nQ\n\n\na\nP\n\n\nb', '\nN')
  assert lib.write(one._replace(shown=())) == ('b', '\nN')
  assert lib.write(two, cap=lambda given, output: given + '!') == ('z!\nQ\n\n\na!\nP\n\n\nb!', '\nN')
  assert lib.write(one, form='plain') == ('', 'N')


def test_the_prompt_of_lama_byte_for_byte():
  one = lib.Episode(example('2', 'Ada', 'London'), (example('0', 'Bo', 'Rome'), example('1', 'Cy', 'Oslo')), '<input> was born in <label>.')
  assert lib.write(one, form='cloze') == ('Bo was born in Rome. Cy was born in Oslo. Ada was born in', ' London')
  assert lib.write(one, form='cloze', mask='[MASK]') == ('Bo was born in Rome. Cy was born in Oslo. Ada was born in [MASK].', 'London')
  assert lib.write(one._replace(shown=()), form='cloze', mask='[MASK]', attached=True) == ('Ada was born in[MASK].', ' London')
  with pytest.raises(ValueError, match='has no <label>'):
    lib.write(one._replace(template='<input> was'), form='cloze')


def test_draws_follow_seed_id_and_number_alone():
  found = lib.draw(POOL, POOL, k=4, seed=1, draws=3)
  assert len(found) == 54 and [e.draw for e in found[:4]] == [0, 1, 2, 0]
  for e in found:
    names = [s['id'] for s in e.shown]
    assert len(set(names)) == 4 and e.query['id'] not in names and {s['task'] for s in e.shown} == {e.query['task']}
  assert lib.draw(POOL[::-1], POOL[::-1], k=4, seed=1, draws=3)[::-1] == [e for n in range(0, 54, 3) for e in found[n:n + 3][::-1]]
  assert lib.draw(POOL[3:4], POOL, k=4, seed=1, draws=3) == found[9:12]
  assert lib.draw(POOL, POOL, k=4, seed=2) != lib.draw(POOL, POOL, k=4, seed=1)
  fewer = lib.draw(POOL, POOL, k=2, seed=1, draws=3)
  assert all(e.shown[2:] == f.shown for e, f in zip(found, fewer))      # those nearest to the query
  counts = collections.Counter(s['id'] for e in lib.draw(POOL[:1], POOL, k=4, seed=0, draws=400) for s in e.shown)
  assert len(counts) == 8 and max(counts.values()) < 1.35 * min(counts.values())


def test_without_overlap_no_demonstration_has_the_querys_label_or_input():
  pool = [*POOL, example('twin', 'A 0', 'q', task='A')]
  for e in lib.draw(pool, pool, k=4, seed=0, draws=5, overlap=False):
    assert all(s['output'] != e.query['output'] and s['input'] != e.query['input'] for s in e.shown)
  assert any(s['output'] == e.query['output'] for e in lib.draw(POOL, POOL, k=4, seed=0) for s in e.shown)


def test_an_example_that_reads_and_answers_as_the_query_is_not_shown():
  pool = [example('1', 'same', 'yes'), example('2', 'same', 'yes'), example('3', 'other', 'no')]
  for e in lib.draw(pool[:1], pool, k=1, seed=0, draws=8):
    assert e.shown == (pool[2],)


def test_shuffled_labels_keep_words_and_labels():
  (one,) = lib.draw(POOL[:1], POOL, k=8, seed=0)
  other = lib.relabelled(one, seed=0)
  assert [s['input'] for s in other.shown] == [s['input'] for s in one.shown] and other.query == one.query
  assert sorted(s['output'] for s in other.shown) == sorted(s['output'] for s in one.shown) and other != one
  assert lib.relabelled(one, seed=0) == other


def test_templates_are_drawn_by_query():
  pool = [example(str(n), f's{n}', f'o{n}', templates=['<input> x <label>', '<input> y <label>']) for n in range(20)]
  found = lib.draw(pool, pool, k=2, seed=0, form='cloze')
  assert {e.template for e in found} == set(pool[0]['templates'])


def test_every_template_of_every_query():
  pool = [example(str(n), f's{n}', f'o{n}', templates=['<input> x <label>', '<input> y <label>']) for n in range(4)]
  found = lib.draw(pool, pool, k=1, seed=0, draws=3, form='cloze', templates='every')
  assert len(found) == 24 and [e.draw for e in found[:6]] == [0, 3, 1, 4, 2, 5] and len({(e.query['id'], e.template, e.draw) for e in found}) == 24


def test_whole_demonstrations_are_left_out_from_the_left():
  one = lib.Episode(example('q', 'b', 'N'), tuple(example(str(n), 'word' * n, 'P') for n in (3, 2, 1)))
  whole = sum(map(len, lib.write(one)))
  assert lib.fit(one, len, length=whole) == (one, 0)
  cut, gone = lib.fit(one, len, length=whole - 1)
  assert gone == 1 and cut.shown == one.shown[1:] and sum(map(len, lib.write(cut))) <= whole - 1
  with pytest.raises(ValueError, match=r'no demonstration has room beside the query \(3 tokens\), length=7'):
    lib.fit(one, len, length=7)
  with pytest.raises(ValueError, match='the query alone has 3 tokens, length=2'):
    lib.fit(one, len, length=2)


def test_left_cut_by_tokens():
  assert lib.cut(range(10), range(3), length=8) == [5, 6, 7, 8, 9]
  assert lib.cut(range(4), range(3), length=8) == [0, 1, 2, 3]
  with pytest.raises(ValueError, match='leaves no room for its prompt'):
    lib.cut(range(4), range(9), length=8)
  row = dict(id=[0, 1], tokens=list(range(12)), targets=list(range(1, 13)), weights=[0.0] * 9 + [1.0] * 3)
  (kept,) = rows_lib.fit([row], length=8, overlong='left').examples
  assert kept['tokens'] == list(range(4, 12)) and kept['targets'] == list(range(5, 13)) and kept['weights'] == [0.0] * 5 + [1.0] * 3


@pytest.mark.parametrize('keywords, says', [
    (dict(k=9), 'A has 8 examples to show before .*; k=9 needs 9 beside the query'), (dict(k=7, overlap=False), 'whose input and label differ'),
    (dict(k=1, form='dialogue'), 'one of pairs, cloze, plain'), (dict(k=-1), 'must be at least 0')])
def test_bad_input(keywords, says):
  with pytest.raises(ValueError, match=says):
    lib.draw(POOL, POOL, seed=0, **keywords)
