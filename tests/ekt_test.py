"""The EKT recipe without models: what recorded programs become, set by set, and where it stops when none of them passes."""
import importlib.util
import json
import pathlib

import pytest

from distill_jax import main, pipeline
from distill_jax.stages import records
from distill_jax.tasks import TASKS

ROOT = pathlib.Path(__file__).resolve().parents[1]
COUNT = 6


@pytest.fixture(scope='module')
def config():
  spec = importlib.util.spec_from_file_location('recipe_ekt', ROOT / 'configs' / 'ekt.py')
  made = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(made)
  return made


@pytest.fixture
def prepared(config, tmp_path):
  """prepared(completions of each example) -> (run(stage), workdir): the recipe up to its sets, somebody's programs in place of the teacher's."""
  def prepare(completions, size='tiny'):
    recipe = config.get_config(size).to_dict()
    for task in recipe['tasks'].values():
      task.update(counts={**task['counts'], 'train': COUNT}, numbers=False)
    examples = list(TASKS['programs'](**{k: v for k, v in recipe['tasks']['programs'].items() if k != 'task'}).examples('train'))
    lines = [dict(question=e['question'], completions=completions(e)) for e in examples]
    (tmp_path / 'programs.jsonl').write_text('\n'.join(map(json.dumps, lines)))
    keys = ('stage', 'task', 'split', 'part')
    recipe['stages']['generate'] = dict({k: v for k, v in recipe['stages']['generate'].items() if k in keys}, recorded=str(tmp_path / 'programs.jsonl'))
    recipe['run'] = ['generate', 'kept', 'unfiltered_set', 'shuffled_set', 'ekt']
    recipe['compare'] = []
    for role in ('teacher', 'base'):
      recipe['roles'][role] = dict(load='bundled:student')
    steps = pipeline.plan(recipe, tmp_path / 'run', main.sources())
    from distill_jax.train.log import Log
    log = lambda name, out: Log(out, name=name, file=tmp_path / 'log.txt', stream=open('/dev/null', 'w'))
    return (lambda name: pipeline.run_step(steps[name], main.sources(), log=log)), tmp_path / 'run', examples
  return prepare


def test_sets_of_the_arms(prepared):
  """The first passing program of a question, cut, with the student's prompt; the first of all; the kept ones at wrong questions."""
  wrong = 'n0 = 1\nanswer = n0 - 5000'
  run, workdir, examples = prepared(lambda e: [wrong, e['program'] + '\n\n# more\nanswer = 1', 'x = 1\n' + e['program'], e['program']])
  for name in ('generate', 'kept', 'unfiltered_set', 'shuffled_set'):
    run(name)
  read = lambda name: {r['id']: r for r in records.read(workdir / name)}
  kept, first, dealt = read('kept'), read('unfiltered_set'), read('shuffled_set')
  assert len(kept) == len(first) == len(dealt) == COUNT
  for e in examples:
    assert (kept[e['id']]['prompt'], kept[e['id']]['completion'], kept[e['id']]['sample']) == (f'# {e["question"]}\n', e['program'], 1)
    assert (first[e['id']]['prompt'], first[e['id']]['completion']) == (f'# {e["question"]}\n', wrong)
    assert dealt[e['id']]['prompt'] == kept[e['id']]['prompt'] and dealt[e['id']]['completion'] != e['program']
  assert sorted(r['completion'] for r in dealt.values()) == sorted(r['completion'] for r in kept.values())


def test_where_no_program_passes_it_stops_before_training_and_says_why(prepared):
  run, workdir, _ = prepared(lambda e: ['n0 = 1\nanswer = n0 - 5000', 'answer = n7', 'n0 = 3', 'answer = 3 +'])
  run('generate')
  with pytest.raises(pipeline.StageFailed) as failed:
    run('kept')
  says = str(failed.value.__cause__)
  assert says.startswith(f'grade: none of {4 * COUNT} texts was kept (')
  assert all(f'{COUNT} {reason}' in says for reason in ('wrong answer', 'error: NameError', 'no answer', 'error: SyntaxError'))
  assert 'nothing to train on' in says and not (workdir / 'kept' / 'DONE').exists() and not (workdir / 'ekt').exists()


def test_every_different_passing_program_as_an_option(prepared):
  """What stands behind the answer line makes no other program."""
  number = lambda e: e['answer'].split('#### ')[1]
  run, workdir, examples = prepared(
      lambda e: [e['program'], e['program'] + '\nprint(answer)', f'answer = {number(e)}', 'answer = 0.5', e['program'] + '\n\n# and'], size='distinct')
  run('generate')
  run('kept')
  assert sorted((r['id'], r['completion']) for r in records.read(workdir / 'kept')) == sorted(
      (e['id'], text) for e in examples for text in (e['program'], f'answer = {number(e)}'))


def test_arms_take_equal_steps_of_equal_rows(config):
  for size in config.SIZES:
    c = config.get_config(size)
    trained = [stage for name, stage in c.stages.items() if stage.stage == 'train']
    assert len(trained) == len(config.SIZES[size]['arms']) + config.SIZES[size]['rounds']
    for key in ('steps', 'batch', 'length', 'optim', 'loss_on_prompt', 'pack'):
      assert len({str(stage[key]) for stage in trained}) == 1, (size, key)
    assert all(stage.roles.student == 'base' for stage in trained), 'each round restarts from the base'
    sampled = [stage for name, stage in c.stages.items() if name.startswith('evaluate_') and name.count('_') < 3 and '0' not in name]
    assert len({(s.temperature, s.samples, s.max_new_tokens) for s in sampled}) == 1, 'one temperature for all systems'


def test_rounds_of_expert_iteration(config):
  """Each asks for what no earlier round solved, and learns all that was solved."""
  c = config.get_config('')
  assert c.stages.expert_texts_0.task == 'few_shot' and 'unsolved' not in c.stages.expert_texts_0
  assert c.stages.expert_texts_1.unsolved and list(c.stages.expert_texts_1.of) == ['expert_set_0'] and c.stages.expert_texts_1.task == 'programs'
  assert list(c.stages.expert_1.of) == ['expert_set_0'] and list(c.stages.expert_2.of) == ['expert_set_0', 'expert_set_1']
  assert c.stages.evaluate_expert.roles.student == 'expert_2_student'
  assert [name for name in config.get_config('full').stages if name.startswith('expert_1')] == ['expert_1', 'expert_10']


def test_full_is_the_papers_setting(config):
  c = config.get_config('full')
  assert (c.roles.teacher.load, c.roles.base.load, c.tasks.programs.source) == ('EleutherAI/gpt-j-6b', 'EleutherAI/gpt-neo-1.3B', 'openai/gsm8k')
  assert (c.tasks.programs.check, c.stages.generate.samples, c.stages.generate.temperature, c.stages.generate.prompt_tokens) == ('paper', 100, 0.6, 756)
  assert (c.stages.ekt.steps, c.stages.ekt.batch, c.stages.ekt.optim.lr, c.stages.ekt.loss_on_prompt) == (12180, 32, 1e-4, True)
