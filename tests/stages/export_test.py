"""Export: a Hugging Face directory, and the proof that it is one."""
import importlib
import importlib.util
import json

import pytest

from distill_jax.models import weights
from distill_jax.stages import roles

stage = importlib.import_module('distill_jax.stages.export')


def test_without_torch_it_is_not_proved(small, call, monkeypatch):
  real = importlib.util.find_spec
  monkeypatch.setattr(stage.importlib.util, 'find_spec', lambda name, *rest: None if name == 'torch' else real(name, *rest))
  summary = call('export', 'export', roles=dict(student=small.student), task=small.task, card='A test.')
  assert summary['proved'].startswith('not proved: torch is not installed')
  assert summary['max_logit_difference'] is None and summary['same_greedy'] is None
  directory = call.out('export') / 'model'
  names = {path.name for path in directory.iterdir()}
  assert {'config.json', 'model.safetensors', 'generation_config.json', 'tokenizer.json', 'README.md'} <= names
  assert summary['directory'] == 'export/model' and summary['bytes'] > 1000
  ids = json.loads((directory / 'generation_config.json').read_text())
  assert (ids['eos_token_id'], ids['pad_token_id']) == (small.text.eos_id, small.text.pad_id)
  assert 'A test.' in (directory / 'README.md').read_text()
  name, config, params = weights.read(directory)
  ours = roles.load_role(small.student)
  assert params['embed']['tokens'].shape == ours.params['embed']['tokens'].shape and name == 'transformer'
  assert roles.load_role(dict(load=str(directory))).text.fingerprint == small.text.fingerprint


def test_transformers_says_the_same(small, call):
  pytest.importorskip('torch')
  summary = call('export', 'export', roles=dict(student=small.student), task=small.task)
  assert summary['proved'] is True and summary['same_greedy'] is True and summary['max_logit_difference'] < 1e-4


def test_one_role(small, call):
  with pytest.raises(ValueError, match=r"one role, got \['student', 'teacher'\]"):
    call('export', 'export', roles=dict(student=small.student, teacher=small.teacher))
