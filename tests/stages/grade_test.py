"""Grade: what is kept, why the rest is not, and the report of it."""
import json

import pytest

from distill_jax.stages import records


@pytest.fixture
def written(small, texts):
  """Texts of every kind; right(e) ends in the answer of e."""
  a, b = list(small.made.examples('train'))[:2]
  right = lambda e, way='': f'{way}#### ' + e['answer'].split('#### ')[1]
  texts('generate', [
      (a, right(a, 'one '), {}), (a, '#### 123456', {}), (a, 'no idea', {}), (a, ' \n', {}), (a, right(a, 'one  '), {}),
      (a, right(a, 'two '), {}), (a, right(a, 'three '), {}),
      (b, right(b), dict(finished=False)), (b, right(b, 'x '), dict(given=1)), (b, '#### 99999', dict(given=1)),
  ])
  return a, b


def rejected(call):
  return [json.loads(line) for line in (call.out('grade') / 'rejected.jsonl').read_text().splitlines()]


def test_reasons(small, call, written):
  a, b = written
  summary = call('grade', 'grade', ['generate'], task=small.task, cap=2)
  assert summary['reasons'] == {'wrong answer': 2, 'no answer': 1, 'empty': 1, 'repeated': 1, 'over the cap': 1, 'unfinished': 1}
  assert (summary['texts'], summary['kept'], summary['questions'], summary['questions_kept']) == (10, 3, 2, 2)
  kept = records.read(call.out('grade'))
  assert [(r['id'], r['completion'].split()[0]) for r in kept] == [(a['id'], 'one'), (a['id'], 'two'), (b['id'], 'x')]
  rows = rejected(call)
  assert len(rows) == 7 and {r['reason'] for r in rows} == set(summary['reasons'])
  assert rows[0] == dict(id=a['id'], question=a['question'], completion='#### 123456', reason='wrong answer')
  assert {r['reason'] for r in summary['examples']} == set(summary['reasons'])


def test_verdicts_that_came_along_are_compared(small, call, written):
  summary = call('grade', 'grade', ['generate'], task=small.task)
  assert summary['given'] == {'agree': 1, 'differ': 1}
  assert summary['notes'] == ['1 of 2 verdicts agree with those that came with the texts']


def test_keep_all_is_a_control(small, call, written):
  summary = call('grade', 'grade', ['generate'], task=small.task, keep='all', unfinished=True, dedupe=False)
  assert summary['kept'] == 10 and summary['reasons'] == {} and rejected(call) == []
  summary = call('grade', 'grade', ['generate'], task=small.task, keep='all')
  assert summary['reasons'] == {'unfinished': 1, 'repeated': 1}


def test_only_the_first_samples(small, call, texts):
  example = next(small.made.examples('train'))
  right = '#### ' + example['answer'].split('#### ')[1]
  texts('generate', [(example, 'no', dict(sample=0)), (example, 'a ' + right, dict(sample=1)), (example, 'b ' + right, dict(sample=2))])
  summary = call('grade', 'grade', ['generate'], task=small.task, samples=2)
  assert (summary['texts'], summary['kept'], summary['right']) == (2, 1, 1) and records.read(call.out('grade'))[0]['completion'].startswith('a ')
  assert call('grade', 'control', ['generate'], task=small.task, samples=3, keep='all')['right'] == 2


def test_what_is_kept_comes_in_parts_and_can_be_graded_again(small, call, written):
  call('grade', 'grade', ['generate'], task=small.task, how=dict(part=3))
  assert len(list(call.out('grade').glob('part-*.arrow'))) == 2
  summary = call('grade', 'twice', ['grade'], task=small.task)
  assert summary['kept'] == summary['texts'] == 4
  assert records.read(call.out('twice')) == records.read(call.out('grade'))


def test_nothing_kept_says_why(small, call, texts):
  example = next(small.made.examples('train'))
  texts('generate', [(example, 'no idea', {}), (example, 'none', {}), (example, '#### 99999', {})])
  with pytest.raises(ValueError, match=r'none of 3 texts was kept \(2 no answer, 1 wrong answer\).*rejected.jsonl'):
    call('grade', 'grade', ['generate'], task=small.task)
  assert len(rejected(call)) == 3


def test_what_it_cannot_grade(small, call, written):
  with pytest.raises(ValueError, match="keep='best': 'right' or 'all' or 'shuffled'"):
    call('grade', 'grade', ['generate'], task=small.task, keep='best')
  with pytest.raises(ValueError, match='no texts in its inputs; name a generate stage'):
    call('grade', 'grade', task=small.task)


def test_the_student_task_says_what_is_learnt(small, call, written, monkeypatch):
  """The teacher's prompt stays with the teacher; one kept text may become several pairs."""
  a, b = written
  made = records.make_task
  tasks = {'teacher': small.made, 'student': small.made._replace(prompt=lambda e: 'Q ' + e['id']),
           'steps': small.made._replace(learn=lambda e, text: [('first', text[:3]), ('second', text[3:])])}
  monkeypatch.setattr(records, 'make_task', lambda definition: tasks[definition['task']] if definition['task'] in tasks else made(definition))
  plain = call('grade', 'plain', ['generate'], task=dict(task='teacher'))
  before = records.read(call.out('plain'))
  summary = call('grade', 'student', ['generate'], task=dict(task='teacher'), tasks=dict(student=dict(task='student')))
  assert summary['kept'] == plain['kept'] and summary['texts_kept'] == plain['kept']
  assert records.read(call.out('student')) == [{**row, 'prompt': 'Q ' + row['id']} for row in before]
  summary = call('grade', 'steps', ['generate'], task=dict(task='teacher'), tasks=dict(student=dict(task='steps')))
  assert summary['kept'] == 2 * plain['kept'] and summary['questions_kept'] == plain['questions_kept']
  assert [r['prompt'] for r in records.read(call.out('steps'))] == ['first', 'second'] * len(before)
  with pytest.raises(ValueError, match="only 'student'"):
    call('grade', 'no', ['generate'], task=dict(task='teacher'), tasks=dict(teacher=dict(task='student')))


def test_many_are_marked_at_once(small, call, written, monkeypatch):
  calls = []
  def grades(pairs):
    calls.append(len(pairs))
    return [small.made.grade(e, text) for e, text in pairs]
  one_by_one = call('grade', 'plain', ['generate'], task=small.task)
  monkeypatch.setattr(records, 'make_task', lambda definition: small.made._replace(grades=grades, grade=None))
  assert call('grade', 'many', ['generate'], task=small.task) == one_by_one and calls == [10]
  monkeypatch.setattr(records, 'make_task', lambda definition: small.made._replace(grades=lambda pairs: [1.0]))
  with pytest.raises(ValueError, match='1 grades for 10 texts'):
    call('grade', 'wrong', ['generate'], task=small.task)


def test_measures_of_all_texts_and_of_the_kept(small, call, written, monkeypatch):
  made = small.made._replace(measures=lambda example, text: dict(marked=float('####' in text), **({'length': len(text)} if text.strip() else {})))
  monkeypatch.setattr(records, 'make_task', lambda definition: made)
  summary = call('grade', 'grade', ['generate'], task=small.task)
  texts = [row['completion'] for row in records.read(call.out('generate'))]
  assert summary['measures']['marked'] == pytest.approx(sum('####' in text for text in texts) / len(texts)) and summary['measures_kept']['marked'] == 1.0
  filled = [len(text) for text in texts if text.strip()]
  assert len(filled) < len(texts) and summary['measures']['length'] == pytest.approx(sum(filled) / len(filled))


def test_shuffled_texts_stand_at_wrong_questions(small, call, texts):
  """The control: the same right texts, none at its own question, the same for a seed."""
  examples = list(small.made.examples('train'))[:5]
  right = lambda e, way='': f'{way}#### ' + e['answer'].split('#### ')[1]
  texts('generate', [(e, right(e, way), {}) for e in examples for way in ('one ', 'two ')] + [(examples[0], '#### 99999', {})])
  call('grade', 'kept', ['generate'], task=small.task)
  summary = call('grade', 'dealt', ['generate'], task=small.task, keep='shuffled')
  kept, dealt = records.read(call.out('kept')), records.read(call.out('dealt'))
  assert summary['kept'] == 10 and summary['reasons'] == {'wrong answer': 1}
  assert sorted(r['completion'] for r in dealt) == sorted(r['completion'] for r in kept) and sorted(r['id'] for r in dealt) == sorted(r['id'] for r in kept)
  own = {(r['id'], r['completion']) for r in kept}
  assert not [r for r in dealt if (r['id'], r['completion']) in own] and all(r['example']['id'] == r['id'] for r in dealt)
  order = lambda name: [(r['id'], r['completion']) for r in records.read(call.out(name))]
  call('grade', 'again', ['generate'], task=small.task, keep='shuffled')
  call('grade', 'other', ['generate'], task=small.task, keep='shuffled', seed=1)
  assert order('again') == order('dealt') != order('other')


def test_texts_of_one_question_cannot_be_shuffled(small, call, texts):
  a, b = list(small.made.examples('train'))[:2]
  right = lambda e, way: f'{way}#### ' + e['answer'].split('#### ')[1]
  texts('generate', [(a, right(a, 'one '), {}), (a, right(a, 'two '), {}), (b, right(b, 'one '), {})])
  with pytest.raises(ValueError, match='cannot deal 3 texts of 2 questions to other questions; 2 are of one'):
    call('grade', 'grade', ['generate'], task=small.task, keep='shuffled')


def test_a_further_round_may_keep_nothing(small, call, texts):
  example = next(small.made.examples('train'))
  texts('generate', [(example, 'no idea', {})])
  texts('nothing', [])
  for name in ('generate', 'nothing'):
    summary = call('grade', f'grade_{name}', [name], task=small.task, empty=True)
    assert summary['kept'] == 0 and records.read(call.out(f'grade_{name}')) == []
  with pytest.raises(ValueError, match='no texts in'):
    call('grade', 'grade', ['nothing'], task=small.task)


def test_a_share_of_the_questions(small, call, texts):
  examples = [dict(e, id=f"{number:016x}") for number in range(400) for e in list(small.made.examples('train'))[:1]]
  texts('generate', [(e, e['answer'], {}) for e in examples])
  kept = {}
  for share in (1.0, 0.2, 0.04):
    call('grade', f'share {share}', ['generate'], task=small.task, share=share)
    kept[share] = {row['id'] for row in records.read(call.out(f'share {share}'))}
  assert kept[0.04] < kept[0.2] < kept[1.0] and len(kept[1.0]) == 400 and 50 <= len(kept[0.2]) <= 110 and 5 <= len(kept[0.04]) <= 30
  with pytest.raises(ValueError, match='share=0.0: of the questions, above 0, at most 1'):
    call('grade', 'none', ['generate'], task=small.task, share=0.0)
  with pytest.raises(ValueError, match='no texts in .* of a share of 1e-06'):
    call('grade', 'few', ['generate'], task=small.task, share=1e-6)


def test_neither_exemplars_nor_the_hint_reach_the_student(call):
  asked, student = (dict(task='stories', counts=dict(train=40), **more) for more in (dict(prompt='hint'), {}))
  call('generate', 'written', task=asked, narrated=True, samples=1)
  shown = records.read(call.out('written'))
  assert all(f'The correct answer is {row["example"]["answer"]}.' in row['prompt'] and row['prompt'].count('Q: ') == 9 for row in shown)
  summary = call('grade', 'kept', ['written'], task=student, tasks=dict(student=student))
  kept = records.read(call.out('kept'))
  assert 0 < len(kept) == summary['questions_kept'] < 40
  by_id = {row['id']: row['completion'] for row in shown}
  for row in kept:
    assert row['prompt'] == row['example']['question'] and 'correct answer' not in row['prompt'] and row['completion'] == by_id[row['id']]
  everything = call('grade', 'all', ['written'], task=student, tasks=dict(student=student), keep='all')
  assert everything['kept'] == 40 and everything['measures_kept'] == everything['measures'] and summary['measures_kept']['complete'] == 1.0
  written = {row['id']: row['completion'] for row in records.read(call.out('all'))}
  assert written == by_id      # wrong answers stay wrong in the control
