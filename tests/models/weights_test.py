"""Our checkpoint format: what is written is read, the same bytes for the same weights, damage and half-written directories are named."""
import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decoder_shapes import ALL, GPT2, LLAMA, MIXED

from distill_jax.core import tree
from distill_jax.models import MODELS, weights

all_shapes = pytest.mark.parametrize('shape', ALL.values(), ids=ALL)


def fresh(shape, seed=0):
  return MODELS['transformer'](**shape).init(jax.random.key(seed))


def assert_equal(one, two):
  one, two = tree.flatten(one), tree.flatten(two)
  assert set(one) == set(two)
  for path, leaf in one.items():
    np.testing.assert_array_equal(leaf, two[path], err_msg=path)


@pytest.fixture
def made(tmp_path):
  weights.write(tmp_path / 'it', 'transformer', LLAMA, fresh(LLAMA))
  return tmp_path / 'it'


@all_shapes
def test_what_is_written_is_read(shape, tmp_path):
  params = fresh(shape)
  weights.write(tmp_path / 'it', 'transformer', shape, params)
  name, config, back = weights.read(tmp_path / 'it')
  assert MODELS[name](**config) is MODELS['transformer'](**shape)
  assert weights.read_config(tmp_path / 'it') == (name, config)
  assert_equal(params, back)
  assert [path.name for path in tmp_path.iterdir()] == ['it']


def test_the_same_weights_are_the_same_bytes(tmp_path):
  params = fresh(MIXED)
  backwards = tree.unflatten(dict(reversed(tree.flatten(jax.device_get(params)).items())))
  weights.write(tmp_path / 'a', 'transformer', MIXED, params)
  weights.write(tmp_path / 'b', 'transformer', dict(reversed(MIXED.items())), backwards)
  for name in ('params.safetensors', 'model.json'):
    assert (tmp_path / 'a' / name).read_bytes() == (tmp_path / 'b' / name).read_bytes()


def test_bfloat16_is_kept_on_disk_and_read_as_float32(tmp_path):
  params = tree.cast(fresh(LLAMA), jnp.bfloat16)
  weights.write(tmp_path / 'it', 'transformer', LLAMA, params)
  _, _, back = weights.read(tmp_path / 'it')
  assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(back))
  assert_equal(tree.cast(params, jnp.float32), back)
  assert os.path.getsize(tmp_path / 'it' / 'params.safetensors') < 3 * tree.count(params)


def test_writing_again_replaces_weights_and_keeps_other_files(made):
  (made / 'tokenizer.json').write_text('{}')
  params = fresh(LLAMA, seed=1)
  weights.write(made, 'transformer', LLAMA, params)
  assert_equal(weights.read(made)[2], params)
  assert (made / 'tokenizer.json').read_text() == '{}'
  assert not list(made.parent.glob('.*'))


def test_a_writer_that_fails_leaves_the_old_checkpoint(made, monkeypatch):
  def full_disk(*_):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(weights, '_save', full_disk)
  with pytest.raises(OSError, match='No space'):
    weights.write(made, 'transformer', LLAMA, fresh(LLAMA, seed=1))
  with pytest.raises(OSError, match='No space'):
    weights.write(made.parent / 'new', 'transformer', LLAMA, fresh(LLAMA))
  assert [path.name for path in made.parent.iterdir()] == ['it']
  assert_equal(weights.read(made)[2], fresh(LLAMA))


@pytest.mark.parametrize('moves', range(3))
def test_a_writer_killed_at_any_move_leaves_nothing_that_reads_as_a_whole(made, monkeypatch, moves):
  """Over an existing directory: marker away, weights in, marker in. Killed before each, then written again."""
  done, move = [], os.replace

  def killed(*paths):
    if len(done) == moves:
      raise KeyboardInterrupt
    done.append(paths)
    move(*paths)

  with monkeypatch.context() as patch:
    patch.setattr(os, 'replace', killed)
    if moves < 2:
      with pytest.raises(KeyboardInterrupt):
        weights.write(made, 'transformer', LLAMA, fresh(LLAMA, seed=1))
      with pytest.raises(FileNotFoundError, match='half written'):
        weights.read(made)
    else:
      weights.write(made, 'transformer', LLAMA, fresh(LLAMA, seed=1))
  weights.write(made, 'transformer', LLAMA, fresh(LLAMA, seed=1))
  assert_equal(weights.read(made)[2], fresh(LLAMA, seed=1))
  assert [path.name for path in made.parent.iterdir()] == ['it']


def edit(made, **changes):
  about = json.loads((made / 'model.json').read_text())
  (made / 'model.json').write_text(json.dumps({**about, **changes}))


def test_a_directory_that_is_not_there_or_empty(tmp_path):
  with pytest.raises(FileNotFoundError, match='no such checkpoint directory'):
    weights.read(tmp_path / 'none')
  with pytest.raises(FileNotFoundError, match='it is empty'):
    weights.read(tmp_path)
  with pytest.raises(FileNotFoundError, match='no such checkpoint directory'):
    weights.read_config(tmp_path / 'none')
  with pytest.raises(FileNotFoundError, match='it is empty'):
    weights.read_config(tmp_path)


def test_a_half_written_directory(made):
  (made / 'params.safetensors').rename(made / 'elsewhere')
  with pytest.raises(FileNotFoundError, match='params.safetensors: missing; the checkpoint is half written'):
    weights.read(made)
  (made / 'model.json').unlink()
  with pytest.raises(FileNotFoundError, match='half written'):
    weights.read(made)


def test_a_file_that_is_cut_short(made):
  data = (made / 'params.safetensors').read_bytes()
  for size in (len(data) - 1, len(data) // 2, 100, 3, 0):
    (made / 'params.safetensors').write_bytes(data[:size])
    with pytest.raises(ValueError, match='params.safetensors: cut short or damaged'):
      weights.read(made)
  (made / 'model.json').write_text((made / 'model.json').read_text()[:20])
  with pytest.raises(ValueError, match='model.json: not JSON'):
    weights.read(made)


def test_a_newer_format_and_an_unknown_model(made):
  edit(made, format=2)
  with pytest.raises(ValueError, match='format 2, this version reads up to 1; update'):
    weights.read(made)
  edit(made, format=1, model='perceiver')
  with pytest.raises(ValueError, match="'perceiver' is not known; known are transformer"):
    weights.read(made)


def test_weights_of_another_config(made):
  for changed, message in (
      (dict(tied=False), "1 weights are missing, first 'head/kernel'"),
      (dict(mlp_width=40), r"'layers/0/mlp/down/kernel' has shape \(3, 48, 32\), the config says \(3, 40, 32\)")):
    edit(made, config={**LLAMA, **changed})
    with pytest.raises(ValueError, match=message):
      weights.read(made)
  weights.write(made, 'transformer', {**LLAMA, 'tied': False}, fresh({**LLAMA, 'tied': False}))
  edit(made, config=LLAMA)
  with pytest.raises(ValueError, match="1 weights too many, first 'head/kernel'"):
    weights.read(made)


def test_weights_of_another_config_are_not_written(tmp_path):
  for write in (weights.write, weights.write_hf):
    with pytest.raises(ValueError, match='cannot write: .*missing'):
      write(tmp_path / 'it', 'transformer', {**GPT2, 'tied': False}, fresh(GPT2))
  assert not list(tmp_path.iterdir())
