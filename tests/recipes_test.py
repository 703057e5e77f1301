"""Every recipe of configs/: each of its sizes is checked as the pipeline checks it; with `pytest -m slow` each `:tiny` runs to the end, twice."""
import functools
import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

from distill_jax import main, pipeline
from distill_jax.core import marks

ROOT = pathlib.Path(__file__).resolve().parents[1]
RECIPES = sorted(path.stem for path in (ROOT / 'configs').glob('*.py'))


@functools.cache
def module(name):
  """configs/NAME.py."""
  spec = importlib.util.spec_from_file_location(f'recipe_{name}', ROOT / 'configs' / f'{name}.py')
  made = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(made)
  return made


def sizes(name) -> list[str]:
  """Those of SIZES, and those that the recipe names where it is asked for one that it has not."""
  try:
    module(name).get_config('no such size')
  except ValueError as error:
    said = re.findall(r"'([^']*)'", str(error).partition('there is')[2])
  return list(dict.fromkeys([*module(name).SIZES, *said]))


def spelled(name, size):
  return f'{name}:{size}' if size else name


@pytest.mark.parametrize('name', RECIPES)
def test_a_recipe_says_what_it_is_and_which_sizes_it_has(name):
  made = module(name)
  assert len(made.__doc__.splitlines()[0]) > 40 and f'configs/{name}.py' in made.__doc__, 'its docstring tells the command'
  assert {'', 'tiny'} <= set(made.SIZES), 'laptop size and tiny size'
  with pytest.raises(ValueError, match=rf"configs/{name}.py has no size 'hugge'; there is '', .*'tiny'"):
    made.get_config('hugge')


@pytest.mark.parametrize('name, size', [pytest.param(name, size, id=spelled(name, size)) for name in RECIPES for size in sizes(name)])
def test_every_size_passes_the_checks_of_the_pipeline(name, size):
  """Names, keywords, order, methods, tasks, models: nothing runs and nothing is fetched."""
  recipe = module(name).get_config(size).to_dict()
  for role in recipe['roles'].values():
    if 'api' in role:      # what the command line gives
      role['api'].update(model='a-model', base_url='http://127.0.0.1:9/v1')
  pipeline.check(recipe, main.sources())
  assert recipe['title'] and type(recipe['seed']) is int
  known = {stage.get('title', stage_name): stage_name for stage_name, stage in recipe['stages'].items()} | {name: name for name in recipe['stages']}
  for first, second, split, *_ in recipe.get('compare') or ():
    for arm in (first, second):
      assert size or known[arm] in recipe['run'], f'{arm} is compared and never run'      # other sizes may leave arms out
      stage = recipe['stages'][known[arm]]
      splits = stage['of'] if stage['stage'] == 'choose' else stage.get('shots') or stage.get('splits', ('test',))
      assert split in ([splits] if isinstance(splits, str) else splits), f'{arm} is not evaluated on {split}'


def test_a_wrong_key_of_a_recipe_is_found():
  recipe = module('gsm8k').get_config('tiny').to_dict()
  recipe['stages']['distill']['method']['alhpa'] = 0.5
  with pytest.raises(ValueError, match=r"config.stages.distill: method.alhpa: .* takes no keyword 'alhpa'"):
    pipeline.check(recipe, main.sources())


def run(config, workdir, *flags):
  ran = subprocess.run([sys.executable, '-m', 'distill_jax.main', f'--config={config}', f'--workdir={workdir}', *flags], cwd=ROOT, text=True,
                       capture_output=True, env={**os.environ, 'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': ''})
  assert ran.returncode == 0, ran.stderr[-3000:]
  return ran.stderr


@pytest.fixture(scope='module')
def tiny(tmp_path_factory):
  """tiny(recipe) -> (workdir, what it said) of its `:tiny`, run once."""
  @functools.cache
  def ran(name):
    workdir = tmp_path_factory.mktemp(name) / 'run'
    return workdir, run(f'configs/{name}.py:tiny', workdir)
  return ran


@pytest.mark.slow
@pytest.mark.parametrize('name', RECIPES)
def test_tiny_runs_to_the_end_and_again_is_nothing_to_do(name, tiny):
  workdir, first = tiny(name)
  stages = module(name).get_config('tiny').run
  assert all(f'{stage}: done in' in first and (workdir / stage / 'DONE').is_file() for stage in stages)
  assert (workdir / 'report.html').is_file()
  again = run(f'configs/{name}.py:tiny', workdir).splitlines()
  assert [line.partition(':')[0] for line in again if ': done before' in line] == list(stages)
  assert not [line for line in again if line.endswith((': begins', ': continues'))]


@pytest.mark.slow
def test_a_t5_student_learns_what_a_decoder_wrote(tmp_path):
  """Text and top-k labels of the bundled decoder teacher, moved to the rows of an encoder-decoder; its export is what transformers loads."""
  import torch
  import transformers
  run('configs/gsm8k.py:tiny_t5', tmp_path / 'run')
  exported = next((tmp_path / 'run' / 'export').rglob('config.json')).parent
  assert json.loads((exported / 'config.json').read_text())['architectures'] == ['T5ForConditionalGeneration']
  proof = marks.read_json(tmp_path / 'run' / 'export' / 'DONE')
  assert 'greedy' in json.dumps(proof)
  model = transformers.AutoModelForSeq2SeqLM.from_pretrained(exported, dtype=torch.float32)
  tokenizer = transformers.AutoTokenizer.from_pretrained(exported)
  assert model.generate(**tokenizer('Tom has 3 apples.', return_tensors='pt'), max_new_tokens=4).shape[1] > 1


@pytest.mark.slow
def test_on_policy_arms_write_every_row(tiny):
  workdir, said = tiny('gkd')
  assert 'on_policy: done' in said and 'mixed: done' in said
  means = [json.loads(line) for line in (workdir / 'on_policy' / 'metrics.jsonl').read_text().splitlines()]
  assert all(row['on_policy'] == 1.0 and row['written_tokens'] > 0 for row in means)


@pytest.mark.slow
@pytest.mark.parametrize('config', ['gsm8k.py:tiny_t5', *(f'{name}.py' for name in RECIPES)])
def test_every_recipe_is_planned_without_writing(config, tmp_path):
  run(f'configs/{config}', tmp_path / 'run', '--dry-run')
  assert not list(tmp_path.rglob('DONE'))
