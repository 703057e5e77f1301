"""The recipe of CoT distillation into a T5: its sizes are sound, the student sees neither hint nor exemplars, and the tiny one runs to its end."""
import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest

from distill_jax import main, pipeline
from distill_jax.core import marks

ROOT = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture(scope='module')
def recipe():
  spec = importlib.util.spec_from_file_location('magister', ROOT / 'configs' / 'magister.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.mark.parametrize('size', ['', 'tiny', 'full'])
def test_every_size_is_checked(recipe, size):
  made = recipe.get_config(size).to_dict()
  pipeline.check(made, main.sources())
  stages = made['stages']
  assert len(made['run']) == len(set(made['run'])) and set(made['run']) <= set(stages) and (size == 'tiny' or set(made['run']) == set(stages))
  arms = [stages[name] for name in ('cot', 'cot_20', 'cot_4', 'unfiltered', 'weak', 'hint', 'gold', 'answers', 'answers_kept')]
  assert len({(arm['steps'], arm['batch'], arm['pack'], arm['source_length'], json.dumps(arm['optim']), arm['roles']['student']) for arm in arms}) == 1
  assert stages['answers_long']['steps'] > stages['answers']['steps']
  assert all(made['tasks'][name]['prompt'] == 'plain' for name in ('cot', 'answers')) and made['tasks']['hinted']['prompt'] == 'hint'
  assert all(stages[name]['tasks'] == dict(student='cot') for name in ('kept', 'kept_20', 'kept_4', 'all', 'kept_hint', 'kept_weak'))
  assert ('evaluate_cot', 'evaluate_answers_kept', 'test') == tuple(made['compare'][0])


def test_the_full_size_is_the_papers_setting(recipe):
  made = recipe.get_config('full').to_dict()
  assert made['roles']['base']['load'] == 'google/t5-v1_1-xl' and 'Instruct' in made['roles']['teacher']['load']
  assert made['tasks']['cot']['source'] == 'openai/gsm8k' and 'read' not in made['stages']
  written = made['stages']['written_hint']
  assert written['temperature'] == 0.0 and written['samples'] == 1 and '\nQ:' in written['stop'] and not written.get('narrated')
  assert made['stages']['cot']['validate']['split'] == 'dev'


def test_an_unknown_size_lists_the_others(recipe):
  with pytest.raises(ValueError, match="no size 'large'; there is '', 'tiny', 'full'"):
    recipe.get_config('large')


@pytest.mark.slow
def test_the_tiny_size_runs(tmp_path):
  workdir = tmp_path / 'run'
  ran = subprocess.run([sys.executable, '-m', 'distill_jax.main', '--config=configs/magister.py:tiny', f'--workdir={workdir}'], cwd=ROOT, text=True,
                       capture_output=True, env={**os.environ, 'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': ''})
  assert ran.returncode == 0, ran.stderr[-3000:]
  summary = lambda name: marks.read_json(workdir / name / 'DONE')['summary']
  assert summary('kept_hint')['questions_kept'] > summary('kept')['questions_kept'] > 0
  assert summary('all')['kept'] == summary('all')['texts'] and 0 < summary('kept_hint')['measures_kept']['true_steps'] <= 1
  figures = summary('evaluate_cot')['metrics']['test']
  assert {'lenient', 'complete', 'rewritten'} <= set(figures) and summary('evaluate_cot_calculator')['calculator'] is True
  assert set(summary('evaluate_cot')['groups']['test']) <= {'2', '3'}
