"""The command line, run as a person runs it, over stages that are a few lines."""
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import pytest

from distill_jax import main
from distill_jax import runs
from distill_jax import seeds
from distill_jax.core import marks

ROOT = pathlib.Path(__file__).resolve().parent.parent

PROGRAM = '''
import json, time
from distill_jax import main, pipeline

def generate(out, inputs, *, seed, how, log, roles, task, sleep=0.0, fail=None):
  log.say('working')
  time.sleep(sleep)
  if fail == 'ours':
    raise ValueError('teacher and student differ in id 5')
  if fail == 'bug':
    {}['nothing here']
  return dict(kind='generate', notes=['a small teacher'], questions=2, texts=4)

def train(out, inputs, *, seed, how, log, roles, steps, lr=0.1):
  log.metrics(1, dict(loss=1.0))
  return dict(kind='train', title='Student', steps=steps, seconds=1.0, final={'loss': 1.0})

def evaluate(out, inputs, *, seed, how, log, roles, right, title=None):
  grades = [float(i < right[seed]) for i in range(10)]
  with open(out / 'predictions.jsonl', 'w') as file:
    for i, grade in enumerate(grades):
      file.write(json.dumps(dict(split='test', id=str(i), question='q', gold='1', texts=['1'], grades=[grade])) + '\\n')
  return dict(kind='evaluate', title=title, splits=dict(test=dict(n=10, accuracy=sum(grades) / 10, low=0.0, high=1.0)))

def forecast(inputs, *, seed, how, roles, steps, lr=0.1):
  return dict(rows=1000, tokens=steps * 1000, truncated=3, bytes=2_500_000, seconds=75)

main.sources = lambda: pipeline.Sources(dict(generate=generate, train=train, evaluate=evaluate), forecasts=dict(train=forecast))
main.start()
'''

CONFIG = '''
from ml_collections import ConfigDict

def get_config(size=''):
  c = ConfigDict()
  c.seed, c.title = 0, 'A recipe for tests'
  c.tasks = dict(problems=dict(task='gsm8k', source='bundled'))
  c.roles = dict(teacher=dict(model=dict(width=4)), student=dict(stage='train'))
  c.stages = dict(
      generate=dict(stage='generate', roles=dict(teacher='teacher'), task='problems'),
      train=dict(stage='train', of=['generate'], roles=dict(student='teacher'), steps=10),
      good=dict(stage='evaluate', roles=dict(student='student'), right=(8, 7, 9), title='Good'),
      bad=dict(stage='evaluate', roles=dict(student='teacher'), right=(2, 3, 1), title='Bad'))
  c.run = ['generate', 'train', 'good', 'bad']
  c.compare = [('Good', 'bad', 'test')]
  return c
'''


@pytest.fixture
def place(tmp_path):
  (tmp_path / 'program.py').write_text(PROGRAM)
  (tmp_path / 'recipe.py').write_text(CONFIG)
  return tmp_path


def environment():
  return {**os.environ, 'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu'}


def run(place, *arguments, config='recipe.py'):
  return subprocess.run([sys.executable, 'program.py', f'--config={config}', *arguments], cwd=place, env=environment(), capture_output=True,
                        text=True, timeout=120)


def test_a_run_shows_results_and_the_same_command_skips(place):
  first = run(place, config='recipe.py:tiny')
  assert first.returncode == 0, first.stderr
  workdir = place / 'runs' / 'recipe-tiny'
  assert 'Good' in first.stdout and '80.0 [0.0, 100.0]' in first.stdout and 'note: a small teacher' in first.stderr
  assert f'report: {workdir.relative_to(place) / "report.html"}' in first.stderr
  assert (workdir / 'report.html').read_text().startswith('<!doctype html>')
  assert marks.read_json(workdir / 'config.json')['stages']['train']['steps'] == 10
  assert 'recipe.py:tiny' in marks.read_json(workdir / 'run.json')['command']
  text = (workdir / 'log.txt').read_text()
  assert 'generate: working' in text and '\x1b' not in text and '\r' not in text
  again = run(place, config='recipe.py:tiny')
  assert again.returncode == 0 and again.stderr.count('done before') == 4 and 'working' not in again.stderr
  grown = run(place, '--config.stages.train.steps=20', '--list', config='recipe.py:tiny')
  assert grown.returncode == 0
  lines = {line.split()[0]: line for line in grown.stdout.splitlines() if line.strip()}
  assert ' done ' in lines['generate'] and 'started (10 of 20 steps)' in lines['train']
  assert ' stale ' in lines['good'] and ' done ' in lines['bad']
  assert 'good: inputs.train: ' in grown.stdout
  other = run(place, '--config.stages.train.lr=0.5', config='recipe.py:tiny')
  assert other.returncode == 1 and 'keywords.lr: (absent) -> 0.5' in other.stderr and 'Traceback' not in other.stderr


@pytest.mark.parametrize('arguments, code, message', [
    (['--config.stages.train.lrr=0.5'], 1, "config.stages.train.lrr: train() takes no keyword 'lrr'; did you mean 'lr'?"),
    (['--config.stages.train.nope.lr=0.5'], 2, "the recipe has no place for an override"),
    (['--config.run=["train", "evaluat"]'], 1, "config.run: there is no 'evaluat'"),
])
def test_a_wrong_command_is_one_line(place, arguments, code, message):
  ran = run(place, *arguments)
  assert ran.returncode == code and message in ran.stderr and ran.stderr.count('\n') == 1
  assert not (place / 'runs').exists()


def test_a_recipe_that_is_not_there_is_one_line(place):
  ran = run(place, config='recipes/x.py:tiny')
  assert ran.returncode == 2 and ran.stderr.count('\n') == 1 and "no file 'recipes/x.py'" in ran.stderr


@pytest.mark.parametrize('fail, message, traceback', [
    ('ours', 'stage generate failed: teacher and student differ in id 5\n', False),
    ('bug', "stage generate failed: KeyError: 'nothing here'\n", True)])
def test_errors_of_stages(place, fail, message, traceback):
  ran = run(place, '--workdir=w', f'--config.stages.generate.fail={fail}')
  assert ran.returncode == 1 and message in ran.stderr and ('Traceback' in ran.stderr) == traceback
  assert 'the same command continues' in ran.stderr


def raised(function) -> Exception:
  with pytest.raises(Exception) as error:
    function()
  return error.value


def test_which_errors_need_no_traceback():
  def mistake():
    raise ValueError('a sentence that tells what to do')
  assert main._ours(raised(mistake))
  assert main._ours(raised(lambda: open('/nope/nope'))), 'an OSError names its file'
  assert main._ours(raised(lambda: marks.bundled('bundled:nope')))
  assert not main._ours(raised(lambda: json.loads('{'))), 'deep in a library'
  assert not main._ours(raised(lambda: {}['x']))
  assert not main._ours(raised(lambda: jax.numpy.ones(3) + jax.numpy.ones(4)))
  assert not main._ours(ValueError())


def test_default_workdir():
  assert main.default_workdir('configs/gsm8k.py') == pathlib.Path('runs/gsm8k')
  assert main.default_workdir('/x/gsm8k.py:tiny') == pathlib.Path('runs/gsm8k-tiny')


def test_a_hub_that_cannot_be_asked(tmp_path, monkeypatch):
  from huggingface_hub import constants
  monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
  monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path))
  with pytest.raises(ValueError, match="'a/b' is no local path.*Pass a local directory that holds the model instead"):
    runs.commit('a/b', 'model', None)
  refs = tmp_path / 'datasets--a--b' / 'refs'
  refs.mkdir(parents=True)
  (refs / 'main').write_text('c0ffee\n')
  assert runs.commit('a/b', 'dataset', None) == 'c0ffee'


def wait_for(path, process):
  for _ in range(600):
    if path.exists() and 'working' in path.read_text():
      return
    assert process.poll() is None
    time.sleep(0.1)
  raise AssertionError(f'nothing in {path}')


def test_interrupts_kills_and_the_lock(place):
  slow = [sys.executable, 'program.py', '--config=recipe.py', '--config.stages.generate.sleep=60.0', '--workdir=w']
  start = lambda: subprocess.Popen(slow, cwd=place, env=environment(), stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
  with start() as process:
    wait_for(place / 'w' / 'log.txt', process)
    second = subprocess.run(slow, cwd=place, env=environment(), capture_output=True, text=True, timeout=120)
    assert second.returncode == 1 and f'in use by process {process.pid};' in second.stderr and 'Traceback' not in second.stderr
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
  assert process.returncode == 130
  assert 'started: generate; to do: train, good, bad' in said and 'the same command continues' in said and 'Traceback' not in said
  (place / 'w' / 'log.txt').write_text('')
  with start() as process:
    wait_for(place / 'w' / 'log.txt', process)
    process.kill()
    process.communicate()
  cache = place / 'w' / '.cache' / 'jax'
  (cache / 'half-cache').write_bytes(b'cut short by a kill')
  (place / 'program.py').write_text(PROGRAM.replace('time.sleep(sleep)', ''))
  last = run(place, '--config.stages.generate.sleep=60.0', '--workdir=w')
  assert last.returncode == 0 and 'generate: continues' in last.stderr, last.stderr
  assert marks.read_json(place / 'w' / 'generate' / 'DONE')['continued'] is True
  assert not (cache / 'half-cache').exists()


def test_dry_run_forecasts_and_writes_nothing(place):
  ran = run(place, '--dry-run')
  assert ran.returncode == 0, ran.stderr
  together = next(line for line in ran.stdout.splitlines() if 'together' in line)
  for figure in ('1,000', '10,000', '3', '2.5 MB', '1 min 15 s'):
    assert figure in together
  assert not (place / 'runs').exists()


def test_seeds_run_the_recipe_and_print_intervals(place):
  ran = run(place, '--seeds=3', '--workdir=w')
  assert ran.returncode == 0, ran.stderr
  # Good 0.8 0.7 0.9 and Bad 0.2 0.3 0.1: t(2, 97.5 %) = 4.3027, so 0.8 +- 4.3027 x 0.1 / sqrt 3
  assert '80.0  70.0  90.0' in ran.stdout and '[55.2, 104.8]' in ran.stdout
  # differences 0.6 0.4 0.8: mean 0.6, +- 4.3027 x 0.2 / sqrt 3; problems that only Good has right: 6 + 4 + 8
  assert '+60.0  +40.0  +80.0' in ran.stdout and '[+10.3, +109.7]' in ran.stdout and '18 / 0' in ran.stdout and 'Good better' in ran.stdout
  figures = marks.read_json(place / 'w' / 'seeds.json')
  assert figures['compare'][0]['p'] == pytest.approx(2 * 0.5**18)
  assert [marks.read_json(place / 'w' / f'seed-{i}' / 'good' / 'DONE')['details']['seed'] for i in range(3)] == [0, 1, 2]
  assert json.loads((place / 'w' / 'seed-2' / 'config.json').read_text())['seed'] == 2
  assert (place / 'w' / '.cache' / 'jax').is_dir() and not (place / 'w' / 'seed-0' / '.cache').exists()


def test_seeds_side_by_side_give_the_same_table(place):
  """Two at a time, each with its words marked; one that fails is named when the others are done, and the same command goes on."""
  command = ('--seeds=3', '--at_once=2', '--workdir', 'w', "--config.stages.train.lr=0.2")
  failing = PROGRAM.replace("return dict(kind='train'", "assert seed != 1 or (out.parent.parent / 'mended').exists(), 'seed one'\n  return dict(kind='train'")
  (place / 'program.py').write_text(failing)
  ran = run(place, *command)
  assert ran.returncode == 1 and f'seed 1 ended with exit code 1, see {pathlib.Path("w", "seed-1", "log.txt")}' in ran.stderr, ran.stderr
  assert 'seed 1: ' in ran.stderr and 'AssertionError: seed one' in ran.stderr and 'seed 2: train: done' in ran.stderr
  (place / 'w' / 'mended').touch()
  again = run(place, *command)
  assert again.returncode == 0, again.stderr
  assert '80.0  70.0  90.0' in again.stdout and '[55.2, 104.8]' in again.stdout and '18 / 0' in again.stdout
  assert 'seed 2: train: done before' in again.stderr and 'seed 1: train: done before' not in again.stderr
  assert marks.read_json(place / 'w' / 'seed-2' / 'train' / 'DONE')['details']['seed'] == 2
  refused = run(place, '--at_once=2')
  assert refused.returncode == 2 and '--at_once goes with --seeds' in refused.stderr
  assert (place / 'w' / '.cache' / 'jax').is_dir() and not (place / 'w' / 'seed-0' / '.cache').exists()


def test_seeds_side_by_side_share_the_cores(place):
  """Each has its own; a cache entry that a kill has cut short is dropped before they begin."""
  told = PROGRAM.replace("return dict(kind='generate'", "import os; (out / 'cores').write_text(str(sorted(os.sched_getaffinity(0))))\n  return dict(kind='generate'")
  (place / 'program.py').write_text(told)
  (cache := place / 'w' / '.cache' / 'jax').mkdir(parents=True)
  (cache / 'half-cache').write_bytes(b'cut short by a kill')
  ran = run(place, '--seeds=2', '--at_once=9', '--workdir=w')
  assert ran.returncode == 0, ran.stderr
  cores = sorted(os.sched_getaffinity(0))
  found = [json.loads((place / 'w' / f'seed-{number}' / 'generate' / 'cores').read_text()) for number in range(2)]
  assert sorted(found) == sorted([cores[0::2], cores[1::2] or cores]) and not (cache / 'half-cache').exists()


def test_seeds_side_by_side_are_for_the_cores_of_one_machine(monkeypatch, tmp_path):
  monkeypatch.setattr(seeds.store, 'remote', lambda path: 'gs://bucket/run')
  with pytest.raises(ValueError, match='with a local --workdir: leave it out, and they run one after another'):
    seeds.run({}, tmp_path, None, count=2, at_once=2)


def test_ctrl_c_reaches_every_seed(place):
  slow = [sys.executable, 'program.py', '--config=recipe.py', '--config.stages.generate.sleep=60.0', '--workdir=w', '--seeds=3', '--at_once=2']
  with subprocess.Popen(slow, cwd=place, env=environment(), stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
    for number in range(2):
      wait_for(place / 'w' / f'seed-{number}' / 'log.txt', process)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
  assert process.returncode == 130 and 'the same command continues' in said and 'Traceback' not in said
  assert all(f'seed {number}: interrupted. started: generate' in said for number in range(2)) and not (place / 'w' / 'seed-2').exists()
