"""The pipeline with stages that are a few lines: marks, skipping, differences, growing, kills, wrong recipes."""
import copy
import json
import pathlib

import pytest

from distill_jax import pipeline
from distill_jax.core import marks

CALLS = []


class Quiet:
  """A log that says nothing."""
  def close(self):
    pass


def generate(out, inputs, *, seed, how, log, roles, task, samples=1):
  CALLS.append(('generate', dict(inputs=inputs, seed=seed, how=how, roles=roles, task=task, samples=samples)))
  (out / 'texts').write_text('x')
  return {'kind': 'generate', 'texts': 3}


def train(out, inputs, *, seed, how, log, roles, steps, optim=None):
  CALLS.append(('train', dict(inputs=inputs, roles=roles, steps=steps)))
  return {'kind': 'train', 'steps': steps}


def evaluate(out, inputs, *, seed, how, log, roles, **keywords):
  CALLS.append(('evaluate', dict(roles=roles)))
  return {'kind': 'evaluate'}


SOURCES = pipeline.Sources(dict(generate=generate, train=train, evaluate=evaluate))
RECIPE = dict(
    seed=7, title='t', tasks=dict(problems=dict(task='gsm8k', source='bundled')), how=dict(log=5),
    roles=dict(
        teacher=dict(load='a/teacher'), base=dict(model=dict(model='transformer', width=8), tokenizer=dict(bpe=300)),
        student=dict(stage='train'), sibling=dict(model=dict(model='transformer'), tokenizer=dict(stage='train', role='student'))),
    stages=dict(
        generate=dict(stage='generate', roles=dict(teacher='teacher'), task='problems', how=dict(batch=2)),
        train=dict(stage='train', of=['generate'], roles=dict(student='base'), steps=10, optim=dict(lr=0.1)),
        evaluate=dict(stage='evaluate', roles=dict(student='student')),
        other=dict(stage='evaluate', roles=dict(student='sibling'))),
    run=['generate', 'train', 'evaluate'])


def recipe(**changes):
  """RECIPE with leaves changed by path: stages__train__steps=20; '-' deletes."""
  out = copy.deepcopy(RECIPE)
  for path, value in changes.items():
    *parents, last = path.split('__')
    node = out
    for name in parents:
      node = node[name]
    if value == '-':
      del node[last]
    else:
      node[last] = value
  return out


def run(workdir, given, sources=SOURCES):
  """Runs a recipe; returns the names of the stages that were called."""
  CALLS.clear()
  steps = pipeline.plan(given, workdir, sources)
  chosen = pipeline.choose(steps, given)
  pipeline.stop_on_differences(list(steps.values()), workdir)
  for step in chosen:
    if pipeline.state(step)[0] != 'done':
      pipeline.run_step(step, sources, log=lambda name, out: Quiet())
  return [name for name, _ in CALLS]


def states(workdir, given):
  return {name: pipeline.state(step)[0] for name, step in pipeline.plan(given, workdir, SOURCES).items()}


def test_stages_get_definitions_inputs_and_how(tmp_path):
  assert run(tmp_path, recipe()) == ['generate', 'train', 'evaluate']
  generated, trained, evaluated = (keywords for _, keywords in CALLS)
  assert generated == dict(inputs={}, seed=7, how=dict(log=5, batch=2), roles=dict(teacher=dict(load='a/teacher')),
                           task=dict(task='gsm8k', source='bundled'), samples=1)
  assert trained == dict(inputs=dict(generate=tmp_path / 'generate'), roles=dict(student=RECIPE['roles']['base']), steps=10)
  assert evaluated == dict(roles=dict(student=dict(load=str(tmp_path / 'train' / 'student'))))


def test_a_tokenizer_of_a_stage_becomes_its_directory(tmp_path):
  run(tmp_path, recipe(run=['generate', 'train', 'other']))
  assert CALLS[-1][1]['roles']['student'] == dict(model=dict(model='transformer'), tokenizer=str(tmp_path / 'train' / 'student'))


def test_what_is_done_is_skipped_and_written_down(tmp_path):
  run(tmp_path, recipe())
  assert run(tmp_path, recipe()) == []
  done = marks.read_json(tmp_path / 'train' / 'DONE')
  assert done['steps'] == 10 and done['summary'] == {'kind': 'train', 'steps': 10} and done['seconds'] >= 0
  assert done['details']['keywords'] == {'optim': {'lr': 0.1}}
  assert marks.read_json(tmp_path / 'train' / 'summary.json') == done['summary']
  assert marks.read_json(tmp_path / 'train' / 'STARTED')['fingerprint'] == done['fingerprint']


def test_how_title_and_place_are_no_part_of_the_mark(tmp_path):
  run(tmp_path / 'a', recipe())
  (tmp_path / 'a').rename(tmp_path / 'b')
  assert run(tmp_path / 'b', recipe(title='another', how=dict(log=1), stages__generate__how=dict(batch=64))) == []


def test_a_difference_stops_before_anything_and_names_every_setting(tmp_path):
  run(tmp_path, recipe(run=['generate', 'train']))
  changed = recipe(stages__train__optim=dict(lr=0.2, warmup=3), roles__base__model=dict(model='transformer', width=16))
  with pytest.raises(ValueError) as error:
    run(tmp_path, changed)
  message = str(error.value)
  assert 'keywords.optim.lr: 0.1 -> 0.2' in message
  assert 'keywords.optim.warmup: (absent) -> 3' in message
  assert 'roles.student.model.width: 8 -> 16' in message
  remedy = message.splitlines()[-1]
  assert '--workdir' in message and remedy.startswith('  rm -r') and 'train' in remedy and 'generate' not in remedy
  assert CALLS == [] and not (tmp_path / 'evaluate').exists()
  assert run(tmp_path, recipe()) == ['evaluate'], 'nothing was changed'


def test_a_difference_upstream_reaches_what_reads_it(tmp_path):
  run(tmp_path, recipe())
  assert states(tmp_path, recipe(stages__generate__samples=2)) == dict(generate='stale', train='stale', evaluate='stale')
  assert states(tmp_path, recipe(stages__train__optim=None)) == dict(generate='done', train='stale', evaluate='stale')
  assert states(tmp_path, recipe(seed=8)) == dict(generate='stale', train='stale', evaluate='stale')


def test_a_started_stage_with_other_settings_stops_too(tmp_path):
  run(tmp_path, recipe())
  (tmp_path / 'evaluate' / 'DONE').unlink()
  assert states(tmp_path, recipe())['evaluate'] == 'started'
  assert states(tmp_path, recipe(stages__evaluate__x=1))['evaluate'] == 'stale'


def test_a_directory_of_somebody_else_is_not_written(tmp_path):
  (tmp_path / 'generate').mkdir()
  (tmp_path / 'generate' / '.STARTED.1.tmp').write_text('{')       # what a kill may leave of ours
  assert states(tmp_path, recipe())['generate'] == 'to do'
  (tmp_path / 'generate' / 'precious').write_text('x')
  with pytest.raises(ValueError, match='something else made it'):
    run(tmp_path, recipe())


def test_content_of_files_is_in_the_mark(tmp_path):
  data = tmp_path / 'data'
  data.mkdir()
  (data / 'train.jsonl').write_text('{}')
  given = recipe(tasks__problems__source=str(data))
  run(tmp_path / 'run', given)
  assert run(tmp_path / 'run', given) == []
  (data / 'train.jsonl').write_text('{"a": 1}')
  with pytest.raises(ValueError, match='task.source: "contents [0-9a-f]+" -> "contents'):
    run(tmp_path / 'run', given)


def test_hub_ids_are_marked_by_commit(tmp_path):
  marks_of = lambda commit: pipeline.plan(recipe(), tmp_path, SOURCES._replace(hub=lambda *_: commit))['generate'].fingerprint
  assert marks_of('c1') == marks_of('c1') != marks_of('c2')


def test_steps_grow_but_do_not_shrink(tmp_path):
  run(tmp_path, recipe(run=['generate', 'train']))
  assert states(tmp_path, recipe(stages__train__steps=20))['train'] == 'started'
  assert run(tmp_path, recipe(stages__train__steps=20, run=['generate', 'train'])) == ['train']
  assert CALLS[0][1]['steps'] == 20
  with pytest.raises(ValueError, match='keywords.steps: 20 -> 10'):
    run(tmp_path, recipe())


def test_what_reads_a_grown_stage_is_stale(tmp_path):
  run(tmp_path, recipe())
  grown = recipe(stages__train__steps=20)
  with pytest.raises(ValueError, match='inputs.train: '):
    run(tmp_path, grown)
  assert marks.read_json(tmp_path / 'train' / 'DONE')['steps'] == 10, 'nothing ran'
  for path in (tmp_path / 'evaluate').iterdir():
    path.unlink()
  assert run(tmp_path, grown) == ['train', 'evaluate']


def test_a_kill_while_growing_leaves_no_old_mark(tmp_path):
  run(tmp_path, recipe(run=['generate', 'train']))

  def killed(out, inputs, *, seed, how, log, roles, steps, optim=None):
    raise KeyboardInterrupt

  sources = SOURCES._replace(stages={**SOURCES.stages, 'train': killed})
  with pytest.raises(KeyboardInterrupt):
    run(tmp_path, recipe(stages__train__steps=20, run=['generate', 'train']), sources)
  assert states(tmp_path, recipe(stages__train__steps=20))['train'] == 'started'
  assert states(tmp_path, recipe())['train'] == 'stale', 'its checkpoints may be past step 10'


def test_a_stage_that_fails_keeps_what_is_done_and_continues(tmp_path):
  def fails(out, inputs, *, seed, how, log, roles, steps, optim=None):
    (out / 'part').write_text('half of it')
    raise ValueError('no room')

  sources = SOURCES._replace(stages={**SOURCES.stages, 'train': fails})
  with pytest.raises(pipeline.StageFailed, match='train') as error:
    run(tmp_path, recipe(), sources)
  assert isinstance(error.value.__cause__, ValueError)
  assert states(tmp_path, recipe()) == dict(generate='done', train='started', evaluate='to do')
  assert run(tmp_path, recipe()) == ['train', 'evaluate']
  assert (tmp_path / 'train' / 'part').exists()
  assert marks.read_json(tmp_path / 'train' / 'DONE')['continued'] is True


def test_killed_between_summary_and_done(tmp_path, monkeypatch):
  write = marks.write_json

  def dies_at_done(path, value):
    if pathlib.Path(path).name == 'DONE':
      raise KeyboardInterrupt
    write(path, value)

  monkeypatch.setattr(marks, 'write_json', dies_at_done)
  with pytest.raises(KeyboardInterrupt):
    run(tmp_path, recipe())
  monkeypatch.undo()
  assert states(tmp_path, recipe())['generate'] == 'started'
  assert run(tmp_path, recipe()) == ['generate', 'train', 'evaluate']


def test_a_summary_must_be_a_dict(tmp_path):
  sources = SOURCES._replace(stages={**SOURCES.stages, 'generate': lambda out, inputs, *, seed, how, log, roles, task: None})
  with pytest.raises(pipeline.StageFailed) as error:
    run(tmp_path, recipe(), sources)
  assert 'summary' in str(error.value.__cause__)


@pytest.mark.parametrize('changes, message', [
    (dict(stages__train__lrr=0.1), r"config.stages.train.lrr: train\(\) takes no keyword 'lrr' \(it takes: optim, roles, steps\)"),
    (dict(stages__train__stepz=0.1), r"did you mean 'steps'"),
    (dict(stages__train__steps='-'), r"config.stages.train: train\(\) needs the keyword 'steps'"),
    (dict(stages__generate__task='-'), r"config.stages.generate: generate\(\) needs the keyword 'task'"),
    (dict(stages__train__task='problems'), r"config.stages.train.task: train\(\) takes no keyword 'task'"),
    (dict(stages__train__seed=1), r'config.stages.train.seed: the pipeline gives this one'),
    (dict(stages__train__stage='trian'), r"config.stages.train.stage: there is no 'trian'; did you mean 'train'\?"),
    (dict(stages__train__stage='-'), r'config.stages.train: stage=... is missing'),
    (dict(stages__train__of=['generat']), r"config.stages.train.of: there is no 'generat'; did you mean 'generate'\?"),
    (dict(stages__train__roles=dict(student='bose')), r"config.stages.train.roles.student: there is no 'bose'; did you mean 'base'\?"),
    (dict(stages__generate__task='gsm'), r"config.stages.generate.task: there is no 'gsm'; known: problems"),
    (dict(roles__student=dict(stage='trains')), r"config.stages.evaluate.roles: there is no 'trains'"),
    (dict(run=['evalute']), r"config.run: there is no 'evalute'; did you mean 'evaluate'\? known: generate, train, evaluate, other"),
    (dict(run=['train', 'generate']), r"config.run: 'train' reads 'generate', which must come before it"),
    (dict(run=['generate', 'generate']), r"config.run: 'generate' stands in it twice"),
    (dict(rum=['generate']), r"config: there is no 'rum'; did you mean 'run'\?"),
    (dict(run='-'), r'config.run: a recipe needs it'),
    (dict(roles__teacher=dict(load='/nope/t')), r"config.roles.teacher.load: no file or directory '/nope/t'"),
])
def test_a_wrong_recipe_is_one_clear_error(tmp_path, changes, message):
  with pytest.raises(ValueError, match=message):
    pipeline.plan(recipe(**changes), tmp_path / 'none', SOURCES)
  assert not (tmp_path / 'none').exists()


def test_stages_that_read_each_other_are_refused(tmp_path):
  third = dict(stage='evaluate', roles=dict(student='base'), of=['other'])
  given = recipe(stages__other__of=['third'], stages__third=third, run=['generate'])
  with pytest.raises(ValueError, match='it reads itself, by way of other -> third -> other'):
    pipeline.plan(given, tmp_path, SOURCES, also=['other'])


def test_nested_checks_are_said_with_the_stage(tmp_path):
  def check(keywords):
    if 'lr' not in keywords['optim']:
      raise TypeError("optim takes no key 'lrr'")

  with pytest.raises(ValueError, match="config.stages.train: optim takes no key 'lrr'"):
    pipeline.plan(recipe(stages__train__optim=dict(lrr=1)), tmp_path, SOURCES._replace(checks=dict(train=check)))


def test_one_stage_alone_needs_its_inputs(tmp_path):
  given = recipe()
  with pytest.raises(ValueError, match='train reads generate, which is to do'):
    pipeline.choose(pipeline.plan(given, tmp_path, SOURCES), given, 'train')
  with pytest.raises(ValueError, match="there is no 'trian'; did you mean 'train'"):
    pipeline.plan(given, tmp_path, SOURCES, also=['trian'])
  run(tmp_path, given)
  steps = pipeline.plan(given, tmp_path, SOURCES, also=['other'])
  assert [step.name for step in pipeline.choose(steps, given, 'other')] == ['other']


def test_forecasts_know_what_is_done_and_what_a_role_will_be(tmp_path):
  seen = {}

  def forecast(inputs, *, seed, how, **keywords):
    seen[keywords.get('steps', 'evaluate')] = (inputs, keywords['roles'])
    return dict(rows=4, tokens=40)

  sources = SOURCES._replace(forecasts=dict(train=forecast, evaluate=forecast))
  made = pipeline.forecast(pipeline.plan(recipe(), tmp_path, sources), sources)
  assert made == dict(generate=None, train=dict(rows=4, tokens=40), evaluate=dict(rows=4, tokens=40))
  assert seen['evaluate'][1] == dict(student=RECIPE['roles']['base']), 'what the train stage starts from'
  run(tmp_path, recipe(run=['generate', 'train']))
  made = pipeline.forecast(pipeline.plan(recipe(), tmp_path, sources), sources)
  assert list(made) == ['evaluate']
  assert seen['evaluate'][1] == dict(student=dict(load=str(tmp_path / 'train' / 'student')))


def test_marks_hold_only_plain_data(tmp_path):
  for step in pipeline.plan(recipe(), tmp_path, SOURCES).values():
    assert json.loads(json.dumps(step.details)) == json.loads(marks.canonical(step.details))


def judge(out, inputs, *, seed, how, log, samples=1, title=None):
  return {'kind': 'evaluate'}


JUDGED = dict(stages=dict(a=dict(stage='judge', title='First', samples=8), b=dict(stage='judge', title='Second')), run=['a', 'b'])


@pytest.mark.parametrize('entry, message', [
    (('a', 'b'), "config.compare[1]: ('a', 'b') is not (arm, arm, split) or (arm, arm, split, measure)"),
    (('a', 'b', 'test', 10), "is not (arm, arm, split)"),
    ('abc', "config.compare[1]: 'abc' is not"),
    (('a', 'Secnd', 'test'), "config.compare[1]: there is no 'Secnd'; did you mean 'Second'? known: a, b, First, Second"),
    (('a', 'b', 'test', 'pass@x'), "config.compare[1]: 'pass@x': pass@ and a number"),
    (('a', 'b', 'test', 'pass@0'), 'pass@ and a number'),
    (('First', 'Second', 'test', 'pass@2'), 'config.compare[1]: pass@2 needs at least 2 samples a problem; Second has samples=1'),
    (('a', 'b', 'test', 'pass@100'), 'pass@100 needs at least 100 samples a problem; a has samples=8'),
])
def test_comparisons_are_checked_before_anything_runs(entry, message):
  sources = pipeline.Sources(dict(judge=judge))
  right = [('a', 'Second', 'test'), ['First', 'b', 'test', 'pass@1'], ('a', 'a', 'test', 'pass@8'), ('a', 'b', 'test', 'MRR')]
  pipeline.check({**JUDGED, 'compare': right}, sources)
  with pytest.raises(ValueError) as error:
    pipeline.check({**JUDGED, 'compare': [right[0], entry]}, sources)
  assert message in str(error.value)
