"""The command that compares a checkpoint with transformers: its figures, its exit codes, what it says where nothing can be compared."""
import json
import re
import shutil

import jax
import numpy as np
import pytest

from distill_jax import check
from distill_jax.data import text as text_lib
from distill_jax.models import MODELS, weights
from distill_jax.stages import proof

CONFIG = dict(vocab_size=300, width=16, layers=1, heads=2, mlp_width=16, max_length=48)


@pytest.fixture(scope='module')
def made(tmp_path_factory):
  """A Hugging Face directory of ours, and one in our own format."""
  home = tmp_path_factory.mktemp('made')
  params = jax.jit(MODELS['transformer'](**CONFIG).init)(jax.random.key(0))
  params = jax.tree.map(lambda x: np.asarray(x) * 4, params)
  weights.write_hf(home / 'hf', 'transformer', CONFIG, params, shard_bytes=20000)
  weights.write(home / 'ours', 'transformer', CONFIG, params)
  text = text_lib.train_bpe(['a b c once upon'], size=300)
  text.save(home / 'hf')
  text.save(home / 'ours')
  return home


def test_equal(made, capsys):
  pytest.importorskip('torch')
  assert check.main([str(made / 'hf'), '--device=cpu', '--prompt=Once upon', '--prompt=a']) == check.EQUAL
  out = capsys.readouterr().out
  assert 'verdict: EQUAL' in out and 'tokens of 2 prompts' in out
  assert len(list((made / 'hf').glob('model-0*.safetensors'))) > 1, 'it was read from shards'


def test_our_own_format(made, capsys):
  pytest.importorskip('torch')
  assert check.main([str(made / 'ours')]) == check.EQUAL
  assert 'of 4 prompts' in capsys.readouterr().out


def test_another_function_is_not_equal(made, tmp_path, capsys):
  """transformers is told another width of the norm's epsilon than we are."""
  pytest.importorskip('torch')
  shutil.copytree(made / 'hf', tmp_path / 'other')
  role = check.compare(str(made / 'hf'), ['a'], seed=1)
  assert role['proved'] is True
  about = json.loads((tmp_path / 'other' / 'config.json').read_text())
  (tmp_path / 'other' / 'config.json').write_text(json.dumps({**about, 'rms_norm_eps': 3.0}))
  real = proof.transformers_model
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(proof, 'transformers_model', lambda directory: real(tmp_path / 'other'))
    assert check.main([str(made / 'hf')]) == check.DIFFERENT
  out = capsys.readouterr().out
  assert 'verdict: NOT EQUAL' in out and 'largest difference of a logit' in out


def test_a_tie_is_no_fault():
  facts = dict(proved=True, max_logit_difference=1e-6, bound=1e-4, same_greedy=False, prompts=1, greedy_tokens=9,
               first_difference=dict(prompt='a', place=3, ours=5, theirs=6, gap=1e-7))
  assert 'a tie within float32 noise' in check.say(facts) and 'the first 3 tokens are equal, then ours is 5' in check.say(facts)


@pytest.mark.parametrize('change, message', [
    (lambda d: (d / 'config.json').write_text(json.dumps(dict(architectures=['MambaForCausalLM']))), "'MambaForCausalLM' is not known; known are"),
    (lambda d: [p.rename(d / 'pytorch_model.bin') for p in d.glob('model*')], r'weights found: pytorch_model.bin.*save_pretrained writes safetensors'),
    (lambda d: (d / 'tokenizer.json').unlink(), 'no tokenizer in'),
])
def test_what_cannot_be_compared(change, message, made, tmp_path, capsys):
  pytest.importorskip('torch')
  shutil.copytree(made / 'hf', tmp_path / 'broken')
  change(tmp_path / 'broken')
  for path in (tmp_path / 'broken').glob('tokenizer_config.json'):
    if message == 'no tokenizer in':
      path.unlink()
  assert check.main([str(tmp_path / 'broken')]) == check.NOTHING
  error = capsys.readouterr().err
  assert re.search(message, error) and error.startswith('nothing was compared: ') and error.count('\n') == 1


def test_no_such_place(capsys):
  pytest.importorskip('torch')
  assert check.main(['./nowhere']) == check.NOTHING
  assert 'no checkpoint at ./nowhere' in capsys.readouterr().err
  assert check.main(['Qwen/Nothing-0B']) == check.NOTHING
  error = capsys.readouterr().err
  assert 'could not be downloaded from the hub' in error and 'Pass a local directory' in error and error.count('\n') == 1


def test_without_torch(made, monkeypatch, capsys):
  monkeypatch.setattr(proof, 'has_torch', lambda: False)
  assert check.main([str(made / 'hf')]) == check.NOTHING
  assert 'pip install torch' in capsys.readouterr().err
