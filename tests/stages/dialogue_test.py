"""Dialogue: who is asked what in which round, oracles, counts, parts, predictions on file. Scripted roles say what the rounds must be; tiny models run them."""
import importlib
import json
import pathlib
import sys

import jax
import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import api_stub  # noqa: E402

from distill_jax.core import keys  # noqa: E402
from distill_jax.decode import sample  # noqa: E402
from distill_jax.stages import CHECKS, FORECASTS, TOGETHER, records, writers  # noqa: E402
from distill_jax.stages.roles import load_role  # noqa: E402
from distill_jax.tasks.socratic import join, parse  # noqa: E402

stage = importlib.import_module('distill_jax.stages.dialogue')
COMMON = dict(task='socratic', families=('shop', 'toys'), counts=dict(train=4, dev=2, test=7, test_long=3))
TASKS = {part: dict(COMMON, part=part) for part in ('unified', 'decomposer', 'solver', 'asked')}
MADE = {part: records.make_task(definition) for part, definition in TASKS.items()}
EXAMPLES = list(MADE['unified'].examples('test'))
BOTH = dict(roles=dict(decomposer=dict(load='d'), solver=dict(load='s')), task=TASKS['unified'], tasks={name: TASKS[name] for name in ('decomposer', 'solver')})


@pytest.fixture
def scripted(monkeypatch):
  """scripted(decomposer=prompt -> text, solver=...): roles that say what they are told; `.asked`: the prompts of every call, by role."""
  def use(**says):
    use.asked = {name: [] for name in says}
    def make(out, definition, share, how, *, name, prompts, settings, **_):
      def write(parts, progress):
        for part, (asked, ids) in parts.items():
          assert len(set(ids)) == len(ids) == len(asked) and all(keys.id_text(keys.id_from_text(i)) == i for i in ids)
          use.asked[name].append(list(asked))
          yield part, [[dict(text=says[name](prompt))] for prompt in asked]
      return writers.Writer(name, {name: name}, 10, write, lambda: {})
    monkeypatch.setattr(stage.writers, 'make', make)
  return use


def _perfect(part, changes={}):
  """What a perfect student of a part writes behind each prompt of the test problems, but for some."""
  made = MADE[part]
  known = {made.prompt(e): made.answer(e) for e in made.examples('test')} | {made.prompt(e): made.answer(e) for e in made.examples('test_long')}
  return lambda prompt: changes.get(prompt, known.get(prompt, ''))


def _rows(call, name='d'):
  return [json.loads(line) for line in (call.out(name) / 'predictions.jsonl').read_text().splitlines()]


def _values(summary, split='test'):
  return {name: figure['value'] for name, figure in summary['metrics'][split].items()}


def test_perfect_students_are_asked_what_they_were_trained_on(call, scripted):
  """Round j asks the problems that have a sub-question j, with the contexts of teacher forcing; all is right and is the gold text."""
  scripted(decomposer=_perfect('decomposer'), solver=_perfect('solver'))
  summary = call('dialogue', 'd', **BOTH)
  assert summary['kind'] == 'evaluate' and summary['splits']['test']['accuracy'] == 1.0 and summary['parameters'] == 20
  assert _values(summary) == dict(questions=pytest.approx(np.mean([len(e['steps']) for e in EXAMPLES])), count_error=0.0, count_right=1.0, steps_right=1.0,
                                  count_reward=1.0)
  assert scripted.asked['decomposer'] == [[e['question'] + '\n' for e in EXAMPLES]]
  rounds = scripted.asked['solver']
  assert [len(asked) for asked in rounds] == [sum(len(e['steps']) > j for e in EXAMPLES) for j in range(max(len(e['steps']) for e in EXAMPLES))]
  assert sorted(sum(rounds, [])) == sorted(MADE['solver'].prompt(e) for e in MADE['solver'].examples('test'))
  assert [row['texts'] for row in _rows(call)] == [[MADE['unified'].answer(e)] for e in EXAMPLES]
  assert {name: group['n'] for name, group in summary['groups']['test'].items()} == {str(n): sum(len(e['steps']) == n for e in EXAMPLES) for n in {len(e['steps']) for e in EXAMPLES}}


def test_the_solver_reads_its_own_steps(call, scripted):
  """Free running: a wrong first step stands in the next context, and is not put right."""
  first = EXAMPLES[0]
  (q, s), (then, _), *_ = first['steps']
  wrong = '1+1=<<1+1=2>>2 pens'
  scripted(decomposer=_perfect('decomposer'), solver=_perfect('solver', {f'{first["question"]}\n{q}\n': wrong}))
  summary = call('dialogue', 'd', **BOTH)
  assert f'{first["question"]}\n{q}\n{wrong}\n{then}\n' in scripted.asked['solver'][1]
  row = _rows(call)[0]
  assert row['grades'] == [0.0] and row['values']['steps_right'] == 0.0 and row['texts'][0].startswith(f'{q} ** {wrong}\n')
  assert summary['splits']['test']['accuracy'] == pytest.approx(1 - 1 / len(EXAMPLES))


def test_too_few_and_too_many_sub_questions(call, scripted):
  short, none, long = (EXAMPLES[i]['question'] + '\n' for i in range(3))
  gold = MADE['decomposer'].answer(EXAMPLES[0])
  says = _perfect('decomposer', {short: gold.split('\n')[0], none: ' \n', long: '\n'.join(f'How many {n}?' for n in range(12))})
  scripted(decomposer=says, solver=_perfect('solver'))
  summary = call('dialogue', 'd', most=5, **BOTH)
  rows, steps = _rows(call), [len(e['steps']) for e in EXAMPLES]
  assert [row['values']['count_error'] for row in rows[:3]] == [steps[0] - 1, steps[1], 5 - steps[2]]
  assert rows[0]['values']['count_reward'] == pytest.approx(1 / steps[0]) and rows[1]['values']['count_reward'] == pytest.approx(1 / steps[1])      # n is at least 1 here
  assert rows[1]['texts'] == [''] and rows[1]['grades'] == [0.0] and len(rows[2]['asked']) == 5 and len(scripted.asked['solver']) == 5
  assert _values(summary)['count_right'] == pytest.approx(1 - 3 / len(EXAMPLES))


def test_oracles(call, scripted):
  """Gold sub-questions: no decomposer is asked. Gold answers: only to gold sub-questions in their turn."""
  scripted(solver=_perfect('solver'))
  assert call('dialogue', 'a', roles=dict(solver=dict(load='s')), task=TASKS['unified'], tasks=dict(solver=TASKS['solver']))['splits']['test']['accuracy'] == 1.0
  turned = EXAMPLES[0]['question'] + '\n'
  gold = MADE['decomposer'].answer(EXAMPLES[0]).split('\n')
  more = EXAMPLES[1]['question'] + '\n'
  says = {turned: '\n'.join(gold[::-1]), more: 'How many birds?\n' + MADE['decomposer'].answer(EXAMPLES[1])}
  scripted(decomposer=_perfect('decomposer', says))
  summary = call('dialogue', 'b', roles=dict(decomposer=dict(load='d')), task=TASKS['unified'], tasks=dict(decomposer=TASKS['decomposer']))
  rows = _rows(call, 'b')
  assert [row['grades'][0] for row in rows] == [0.0] + [1.0] * (len(rows) - 1), 'only the problem whose sub-questions are in another order is lost'
  assert parse(rows[1]['texts'][0])[0][0] == ('How many birds?', '') and _values(summary)['count_error'] == pytest.approx(1 / len(rows))


def test_all_sub_questions_in_the_prompt(call, scripted):
  bad = EXAMPLES[0]['question'] + '\n'
  scripted(decomposer=_perfect('decomposer', {bad: ''}), solver=_perfect('asked'))
  tasks = dict(decomposer=TASKS['decomposer'], solver=TASKS['asked'])
  summary = call('dialogue', 'd', **{**BOTH, 'tasks': tasks})
  assert scripted.asked['solver'] == [[MADE['asked'].prompt(e) for e in EXAMPLES[1:]]]
  rows = _rows(call)
  assert [row['grades'][0] for row in rows] == [0.0] + [1.0] * (len(rows) - 1) and rows[1]['texts'] == [MADE['asked'].answer(EXAMPLES[1])]
  assert _values(summary)['steps_right'] == pytest.approx(1 - 1 / len(rows))


def test_models_speak_and_parts_that_exist_are_not_answered_again(small, call):
  """Random models: round 1 is what sampling alone writes behind those prompts; a part that is lost comes back as it was."""
  settings = dict(roles=dict(solver=small.student), task=TASKS['unified'], tasks=dict(solver=TASKS['solver']), splits=('test', 'dev'), count=2, part=1, max_new_tokens=8,
                  calculator=True, how=dict(batch=8))
  summary = call('dialogue', 'd', **settings)
  rows = _rows(call)
  assert [(r['split'], r['id']) for r in rows] == [(split, e['id']) for split in ('test', 'dev') for e in list(MADE['unified'].examples(split))[:2]]
  role = load_role(small.student)
  prompts = [f'{e["question"]}\n{e["steps"][0][0]}\n' for e in EXAMPLES[:2]]
  length = sample.longest(role, [stage._longest(MADE['solver'], 'solver', False, e) for split in ('test', 'dev') for e in list(MADE['unified'].examples(split))[:2]])
  alone, _ = sample.write(role, role.params, prompts, [keys.content_id(p) for p in prompts], jax.random.key(0), max_new_tokens=8, temperature=0.0, batch=8,
                          writer=MADE['solver'].writer, length=length)
  firsts = [row['texts'][0].split('\n')[0] for row in rows[:2]]
  assert firsts == [join([(e['steps'][0][0], ' '.join(several[0]['text'].split()))], final='').split('\n')[0] for e, several in zip(EXAMPLES, alone)]
  assert set(summary['splits']) == {'test', 'dev'} and summary['calculator'] and _values(summary, 'dev')['count_right'] == 1.0
  assert summary['writers']['solver'] == dict(cut_prompts=0)
  part = sorted((call.out('d') / 'test').glob('part-*.arrow'))[1]
  before = part.read_bytes()
  part.unlink()
  call('dialogue', 'd', **settings)
  assert part.read_bytes() == before and _rows(call) == rows


def test_a_decomposer_behind_an_api(call):
  """Its answers are in a journal of its own and are not asked for twice."""
  server = api_stub.Stub()
  try:
    api = dict(model='m', base_url=server.url, key_env='NO_SUCH_KEY', template='{prompt}', kind='completions')
    settings = dict(roles=dict(decomposer=dict(api=api)), task=TASKS['unified'], tasks=dict(decomposer=TASKS['decomposer']))
    stage.check(settings)
    summary = call('dialogue', 'd', **settings)
    assert len(server.requests) == len(EXAMPLES) and summary['parameters'] is None and summary['writers']['decomposer']['api']['requests'] == len(EXAMPLES)
    assert _rows(call)[0]['asked'][-1] == '#### 7' and list((call.out('d') / 'decomposer').glob('journal-*.jsonl'))
    for path in (call.out('d') / 'test').glob('part-*'):
      path.unlink()
    call('dialogue', 'd', **settings)
    assert len(server.requests) == len(EXAMPLES)
  finally:
    server.close()


def test_what_goes_together(call):
  solver = dict(api=dict(model='m', base_url='http://127.0.0.1:1/v1', template='{prompt}'))
  for changed, message in (
      (dict(roles={}), r'give decomposer, solver or both'), (dict(roles=dict(student=dict(load='s'))), r"roles=\['student'\]; give decomposer"),
      (dict(tasks=dict(decomposer=TASKS['decomposer'])), r"the solver needs tasks=dict\(solver=...\) with part='solver' or 'asked'"),
      (dict(tasks=dict(decomposer=TASKS['solver'], solver=TASKS['solver'])), "the decomposer needs .* with part='decomposer'"),
      (dict(stop=dict(student=['x'])), r"stop=\['student'\]"), (dict(roles=dict(decomposer=dict(load='d'), solver=solver), calculator=True), 'calculator'),
      (dict(task=dict(TASKS['unified'], part='x'), splits=('none',)), "part='x'")):
    with pytest.raises(ValueError, match=message):
      call('dialogue', 'x', **{**BOTH, **changed})
  with pytest.raises(ValueError, match="no examples in split 'test'"):
    call('dialogue', 'x', **BOTH, count=0)


def test_it_is_planned_as_the_others(small):
  assert CHECKS['dialogue'] is stage.check and 'dialogue' in TOGETHER
  figures = FORECASTS['dialogue']({}, seed=0, how={}, roles=dict(decomposer=small.student, solver=small.teacher), task=TASKS['unified'], tasks={})
  assert figures['rows'] == len(EXAMPLES) and figures['tokens'] > 0 and figures['seconds'] > 0
