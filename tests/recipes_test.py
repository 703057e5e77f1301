"""Recipes from their command lines to the end, at their tiny sizes. Minutes: `pytest -m slow tests/recipes_test.py`."""
import json
import os
import pathlib
import subprocess
import sys

import pytest

from distill_jax.core import marks

ROOT = pathlib.Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.slow


def run(config, workdir, *flags):
  ran = subprocess.run([sys.executable, '-m', 'distill_jax.main', f'--config={config}', f'--workdir={workdir}', *flags], cwd=ROOT, text=True,
                       capture_output=True, env={**os.environ, 'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': ''})
  assert ran.returncode == 0, ran.stderr[-3000:]
  return ran.stderr


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


def test_on_policy_arms_run_and_again_is_nothing_to_do(tmp_path):
  first = run('configs/gkd.py:tiny', tmp_path / 'run')
  assert 'on_policy: done' in first and 'mixed: done' in first
  means = [json.loads(line) for line in (tmp_path / 'run' / 'on_policy' / 'metrics.jsonl').read_text().splitlines()]
  assert all(row['on_policy'] == 1.0 and row['written_tokens'] > 0 for row in means)
  assert not any(line.startswith('on_policy: begins') for line in run('configs/gkd.py:tiny', tmp_path / 'run').splitlines())


def test_every_recipe_is_planned_without_writing(tmp_path):
  for config in ('gsm8k.py', 'gsm8k.py:tiny_t5', 'gkd.py'):
    run(f'configs/{config}', tmp_path / config, '--dry-run')
    assert not (tmp_path / config).exists() or not list((tmp_path / config).rglob('DONE'))
