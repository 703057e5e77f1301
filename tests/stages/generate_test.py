"""Generate: whole parts, the same bytes again, recorded texts, overlap."""
import json
import shutil

import pytest

from distill_jax.data import shards
from distill_jax.stages import records

SETTINGS = dict(samples=2, temperature=1.0, max_new_tokens=8, part=2, how=dict(batch=16))


def bytes_of(directory):
  return {path.name: path.read_bytes() for path in sorted(directory.glob('part-*.arrow'))}


def test_parts_and_restart(small, call):
  """A part that is gone is written again, to the same bytes; the others are left alone."""
  settings = dict(roles=dict(teacher=small.teacher), task=small.task, count=5, **SETTINGS)
  summary = call('generate', 'generate', **settings)
  assert (summary['kind'], summary['questions'], summary['samples'], summary['texts']) == ('generate', 5, 2, 10)
  rows = records.read(call.out('generate'))
  examples = list(small.made.examples('train'))[:5]
  assert [(r['id'], r['sample']) for r in rows] == [(e['id'], n) for e in examples for n in range(2)]
  assert sum(r['tokens'] for r in rows) == summary['tokens'] <= 80
  assert len({r['completion'] for r in rows}) > 5, 'samples differ'
  opened = shards.open_shards(call.out('generate'))
  assert set(opened.manifest['fingerprints']) == {'teacher', 'tokenizer'} and opened.manifest['kind'] == 'texts'

  before = bytes_of(call.out('generate'))
  assert len(before) == 3
  (call.out('generate') / sorted(before)[1]).unlink()
  kept = call.out('generate') / sorted(before)[0]
  stamp = kept.stat().st_mtime_ns
  again = call('generate', 'generate', **settings)
  assert bytes_of(call.out('generate')) == before and again['tokens'] == summary['tokens']
  assert kept.stat().st_mtime_ns == stamp

  call('generate', 'wider', **{**settings, 'part': 5, 'how': dict(batch=16)})
  assert [(r['id'], r['completion']) for r in records.read(call.out('wider'))] == [(r['id'], r['completion']) for r in rows]


def test_recorded_texts_enter_by_their_question(small, call, tmp_path):
  a, b = list(small.made.examples('train'))[:2]
  lines = [dict(question=b['question'].replace(' ', '  '), completion='b1', is_correct=False),
           dict(question=a['question'], completions=['a1', 'a2']), dict(question='How many?', completion='?'),
           dict(question=b['question'], completion='b2', is_correct=True)]
  (tmp_path / 'somebody.jsonl').write_text('\n'.join(json.dumps(line) for line in lines))
  summary = call('generate', 'generate', task=small.task, recorded=str(tmp_path / 'somebody.jsonl'))
  rows = records.read(call.out('generate'))
  assert {(r['id'], r['sample'], r['completion'], r['given']) for r in rows} == {
      (a['id'], 0, 'a1', -1), (a['id'], 1, 'a2', -1), (b['id'], 0, 'b1', 0), (b['id'], 1, 'b2', 1)}
  assert summary['texts'] == 4 and summary['unknown'] == 1 and 'not in the split' in summary['notes'][0]
  assert 'somebody.jsonl' in summary['teacher']


def test_recorded_texts_of_other_questions_are_refused(small, call, tmp_path):
  (tmp_path / 'somebody.jsonl').write_text(json.dumps(dict(question='How many?', completion='?')))
  with pytest.raises(ValueError, match='none of its 1 questions is in this split'):
    call('generate', 'generate', task=small.task, recorded=str(tmp_path / 'somebody.jsonl'))


def test_overlap_with_the_held_out_split_is_counted(small, call, tmp_path):
  asked, held = next(small.made.examples('train')), next(small.made.examples('test'))
  said = (held['question'] + ' ' + held['answer'], '#### 1')
  rows = [dict(question=asked['question'], completion=text) for text in said]
  (tmp_path / 'leak.jsonl').write_text('\n'.join(json.dumps(row) for row in rows))
  summary = call('generate', 'generate', task=small.task, recorded=str(tmp_path / 'leak.jsonl'))
  assert summary['overlap']['held_out'] == 'test'
  assert 1 in summary['overlap'].values(), summary['overlap']


@pytest.mark.parametrize('given', [dict(), dict(recorded='x', roles=dict(teacher=dict(load='y')))])
def test_one_source_of_texts(small, call, given):
  with pytest.raises(ValueError, match="one of roles=dict.*recorded='FILE', narrated=True"):
    call('generate', 'generate', task=small.task, **given)


def test_no_question_at_all(small, call):
  with pytest.raises(ValueError, match="no examples in split 'train'"):
    call('generate', 'generate', roles=dict(teacher=small.teacher), task={**small.task, 'counts': dict(train=0)})


def test_a_teacher_without_an_end_of_text_writes_on_and_it_is_said(small, call, tmp_path):
  shutil.copytree(small.teacher['load'], tmp_path / 'endless')
  about = json.loads((tmp_path / 'endless' / 'tokenizer_config.json').read_text())
  plain = {name: value for name, value in about.items() if name not in ('eos_token', 'pad_token')}
  (tmp_path / 'endless' / 'tokenizer_config.json').write_text(json.dumps(plain))
  summary = call('generate', 'generate', roles=dict(teacher=dict(load=str(tmp_path / 'endless'))), task=small.task, count=2,
                 **{**SETTINGS, 'max_new_tokens': 4})
  assert summary['unfinished'] == 4 and summary['tokens'] == 16
  assert 'has no end-of-text token: every text goes on to max_new_tokens' in summary['notes'][0]


def test_the_second_prompt_goes_on_with_each_text(small, call):
  """Zero-shot-CoT in two prompts: the record keeps the first prompt and holds rationale, marker and answer."""
  call('generate', 'first', task=small.task, roles=dict(teacher=small.teacher), count=3, **SETTINGS)
  then = ' So: '
  more = {**SETTINGS, 'samples': 1, 'temperature': 0.0}
  summary = call('generate', 'second', ['first'], task=small.task, roles=dict(teacher=small.teacher), then=then, **more)
  first, second = records.read(call.out('first')), records.read(call.out('second'))
  assert summary['texts'] == len(second) == len(first) == 6
  for a, b in zip(first, second, strict=True):
    assert (b['id'], b['sample'], b['prompt']) == (a['id'], a['sample'], a['prompt'])
    assert b['completion'].startswith(a['completion'] + then) and b['tokens'] > a['tokens'] and b['logp'] < a['logp']
  assert len({b['completion'][len(a['completion']):] for a, b in zip(first, second, strict=True)}) > 1, 'the second step reads the first'
  for wrong in (dict(samples=2), dict(unsolved=True), dict(roles=None, narrated=True)):
    with pytest.raises(ValueError, match='then='):
      call('generate', 'third', ['first'], **{**dict(task=small.task, roles=dict(teacher=small.teacher), then=then), **more, **wrong})


def test_only_questions_without_a_kept_text(small, call, texts):
  asked = list(small.made.examples('train'))
  texts('kept', [(asked[0], 'x', {}), (asked[2], 'y', {})])
  settings = dict(task=small.task, roles=dict(teacher=small.teacher), unsolved=True, **SETTINGS)
  call('generate', 'rest', ['kept'], count=4, **settings)
  assert {r['id'] for r in records.read(call.out('rest'))} == {asked[1]['id'], asked[3]['id']}
  texts('all', [(e, 'x', {}) for e in asked])
  summary = call('generate', 'none', ['all'], **settings)
  assert summary['questions'] == summary['texts'] == 0 and records.read(call.out('none')) == []


def test_a_task_that_narrates_writes_by_rule(small, call, monkeypatch):
  monkeypatch.setattr(records, 'make_task', lambda definition: small.made._replace(narrate=lambda e, rng: f'{e["question"][:5]} {rng.random()}'))
  settings = dict(task=small.task, narrated=True, samples=3, part=2)
  summary = call('generate', 'told', **settings)
  rows = records.read(call.out('told'))
  assert summary['texts'] == len(rows) == 18 and len({r['completion'] for r in rows}) == 18 and 'narrator' in summary['teacher']
  call('generate', 'again', **{**settings, 'part': 4})
  assert records.read(call.out('again')) == rows, 'randomness follows the question'
  call('generate', 'other', seed=1, **settings)
  assert all(a['completion'] != b['completion'] for a, b in zip(records.read(call.out('other')), rows))
  monkeypatch.undo()
  with pytest.raises(ValueError, match='has no narrator'):
    call('generate', 'no', **settings)


def test_prompts_longer_than_prompt_tokens_are_cut_from_the_left_and_counted(small, call):
  examples = list(small.made.examples('train'))[:3]
  lengths = sorted(len(small.text.encode(small.made.prompt(e))) for e in examples)
  settings = dict(roles=dict(teacher=small.teacher), task=small.task, count=3, **SETTINGS)
  assert call('generate', 'whole', **settings)['cut_prompts'] == 0
  assert call('generate', 'two', prompt_tokens=lengths[0], **settings)['cut_prompts'] == sum(n > lengths[0] for n in lengths) == 2
  assert call('generate', 'few', prompt_tokens=8, **settings)['cut_prompts'] == 3
  assert call('evaluate', 'asked', prompt_tokens=8, roles=dict(teacher=small.teacher), task=small.task, max_new_tokens=4, how=dict(batch=8))['cut_prompts'] == 3
