"""Rows: the shift happens once, weights, packing, ids, and what is refused."""
import types

import numpy as np
import pytest

from distill_jax.core import keys
from distill_jax.data import rows as rows_lib


def text(*, eos=1, pad=0, bos=None):
  """A text side whose ids are 10 + the letters' numbers."""
  return types.SimpleNamespace(eos_id=eos, pad_id=pad, bos_id=bos, require_end=lambda: eos, encode=lambda s: [10 + ord(c) - ord('a') for c in s])


def make(length, seed=0, **more):
  rng = np.random.default_rng([seed, length])
  whole = rng.integers(2, 50, length + 1).astype(np.int32)
  return dict(id=keys.content_id(seed, length), tokens=whole[:-1], targets=whole[1:], weights=np.ones(length, np.float32), **more)


def several(count=23, seed=0, longest=20):
  lengths = np.random.default_rng(seed).integers(1, longest, count)
  return [make(int(n), seed=i + 100 * seed) for i, n in enumerate(lengths)]


ID = keys.content_id('x')


def test_render_shifts_once_and_weighs_the_completion():
  example = rows_lib.render(text(), 'ab', 'cd', id_2=ID)
  assert example['tokens'].tolist() == [10, 11, 12, 13]
  assert example['targets'].tolist() == [11, 12, 13, 1]
  assert example['weights'].tolist() == [0, 1, 1, 1]
  np.testing.assert_array_equal(example['targets'][:-1], example['tokens'][1:])
  assert (example['tokens'].dtype, example['weights'].dtype, example['id'].dtype) == (np.int32, np.float32, np.uint32)


def test_render_with_a_first_token_and_with_loss_on_the_prompt():
  example = rows_lib.render(text(bos=5), 'ab', 'c', id_2=ID)
  assert example['tokens'].tolist() == [5, 10, 11, 12] and example['weights'].tolist() == [0, 0, 1, 1]
  assert rows_lib.render(text(bos=5), 'ab', 'c', id_2=ID, loss_on_prompt=True)['weights'].tolist() == [1, 1, 1, 1]


def test_without_a_prompt_the_first_token_is_given_and_all_others_are_learnt():
  assert rows_lib.render(text(), '', 'abc', id_2=ID)['weights'].tolist() == [1, 1, 1]
  assert rows_lib.render(text(bos=5), '', 'abc', id_2=ID)['targets'].tolist() == [10, 11, 12, 1]


@pytest.mark.parametrize('pad', [0, 1])
def test_the_end_is_always_learnt_also_where_it_is_the_padding(pad):
  example = rows_lib.render(text(eos=1, pad=pad), 'a', 'b', id_2=ID)
  batch = rows_lib.unpacked([example], length=5).batch([0])
  assert batch['targets'][0, 1] == 1 and batch['weights'][0].tolist() == [1, 1, 0, 0, 0]
  assert batch['segments'][0].tolist() == [1, 1, 0, 0, 0]


def test_fit_drops_or_cuts_what_is_too_long():
  examples = [make(3), make(9, **{'label/top_ids': np.zeros((9, 4), np.int32), 'reward': np.float32(2)})]
  dropped = rows_lib.fit(examples, length=5)
  assert [len(e['tokens']) for e in dropped.examples] == [3] and (dropped.dropped, dropped.cut) == (1, 0)
  cut = rows_lib.fit(examples, length=5, overlong='cut')
  assert [len(e['tokens']) for e in cut.examples] == [3, 5] and (cut.dropped, cut.cut) == (0, 1)
  assert cut.examples[1]['label/top_ids'].shape == (5, 4) and cut.examples[1]['reward'] == 2 and len(cut.examples[1]['id']) == 2
  assert len(examples[1]['tokens']) == 9, 'the caller keeps its own'
  with pytest.raises(ValueError, match="overlong='wrap'"):
    rows_lib.fit(examples, length=5, overlong='wrap')


def test_packing_is_complete_and_close_to_the_bound():
  lengths = np.random.default_rng(0).integers(20, 200, 2000).tolist()
  bins = rows_lib.pack(lengths, length=256)
  assert sorted(i for members in bins for i in members) == list(range(2000))
  assert all(sum(lengths[i] for i in members) <= 256 for members in bins)
  assert len(bins) <= 1.05 * np.ceil(sum(lengths) / 256)
  assert bins == rows_lib.pack(lengths, length=256)


def test_packing_limits():
  assert max(map(len, rows_lib.pack([1] * 50, length=100, most=8))) == 8
  assert rows_lib.pack([4, 4], length=4) == [[0], [1]]
  assert rows_lib.pack([4, 3, 1], length=4) == [[0], [1, 2]]


def test_a_row_that_is_packed_tells_its_examples_apart():
  examples = [make(3), make(4), make(2)]
  batch = rows_lib.Rows(examples, [[0, 1], [2]], length=8).batch([0, 1])
  full = int(np.argmax((batch['segments'] > 0).sum(1)))
  first, second = sorted(examples[:2], key=lambda e: tuple(e['id']))
  n, m = len(first['tokens']), len(second['tokens'])
  for name in ('tokens', 'targets', 'weights'):
    np.testing.assert_array_equal(batch[name][full], np.concatenate([first[name], second[name], np.zeros(1)]))
  assert batch['segments'][full].tolist() == [1] * n + [2] * m + [0]
  assert batch['positions'][full].tolist() == [*range(n), *range(m), 0]
  np.testing.assert_array_equal(batch['examples'][full], [first['id'], second['id']])
  np.testing.assert_array_equal(batch['examples'][1 - full], [examples[2]['id'], [0, 0]])
  for name, array in batch.items():
    assert array.dtype == rows_lib.KEYS[name].dtype, name


def test_the_order_of_arrival_does_not_matter():
  examples = several()
  order = np.random.default_rng(1).permutation(len(examples))
  bins = rows_lib.pack([len(e['tokens']) for e in examples], length=24)
  place = {int(old): new for new, old in enumerate(order)}
  here = rows_lib.Rows(examples, bins, length=24)
  there = rows_lib.Rows([examples[i] for i in order], [[place[i] for i in reversed(members)] for members in reversed(bins)], length=24)
  np.testing.assert_array_equal(here.ids, there.ids)
  a, b = here.batch(range(len(here))), there.batch(range(len(there)))
  for name in a:
    np.testing.assert_array_equal(a[name], b[name], err_msg=name)
  assert len({tuple(i) for i in here.ids}) == len(here)


def test_tokens_and_targets_are_counted():
  rows = rows_lib.packed(several(), length=24)
  batch = rows.batch(range(len(rows)))
  assert rows.tokens == (batch['segments'] > 0).sum() and rows.targets == batch['weights'].sum()


def test_labels_are_packed_in_step_with_their_tokens():
  examples = [{**e, 'label/top_ids': np.stack([e['targets']] * 2, -1), 'label/top_logps': np.full((len(e['tokens']), 2), -0.5, np.float16)}
              for e in several()]
  rows = rows_lib.packed(examples, length=24)
  batch = rows.batch(range(len(rows)))
  assert set(batch['label']) == {'top_ids', 'top_logps'} and batch['label']['top_logps'].dtype == np.float32
  here = batch['segments'] > 0
  np.testing.assert_array_equal(batch['label']['top_ids'][here][:, 1], batch['targets'][here])


def test_keys_of_an_example_are_stacked_by_segment():
  examples = [{**e, 'reward': np.float32(len(e['tokens'])), 'class': 3} for e in several()]
  rows = rows_lib.packed(examples, length=24)
  batch = rows.batch(range(len(rows)))
  assert batch['reward'].shape == (len(rows), rows.most) and batch['reward'].dtype == np.float32 and batch['class'].dtype == np.int32
  for b in range(len(rows)):
    for e in range(rows.most):
      assert batch['reward'][b, e] == (batch['segments'][b] == e + 1).sum()


def test_keys_of_a_row_cannot_be_packed():
  examples = [{**e, 'image': np.zeros((2, 2, 3), np.float32)} for e in (make(3), make(4))]
  assert rows_lib.unpacked(examples, length=8).batch([0, 1])['image'].shape == (2, 2, 2, 3)
  with pytest.raises(ValueError, match=r"'image' belongs to a whole row: it cannot be packed \(pack=False\)"):
    rows_lib.packed(examples, length=8).batch([0])


def test_an_undeclared_key_says_where_to_declare_it():
  rows = rows_lib.unpacked([make(3, colour=np.zeros(3))], length=4)
  with pytest.raises(KeyError, match=r"'colour' is not declared: .* data/rows.py KEYS"):
    rows.batch([0])


@pytest.mark.parametrize('name', ['segments', 'positions', 'examples', 'row'])
def test_an_example_does_not_bring_what_packing_writes(name):
  rows = rows_lib.unpacked([make(3, **{name: np.zeros(3, np.int32)})], length=4)
  with pytest.raises(KeyError, match='written by packing'):
    rows.batch([0])


def test_no_row_at_all_is_an_error():
  with pytest.raises(ValueError, match='no row to train on'):
    rows_lib.packed([], length=8)


def translations(count=17, seed=0):
  """Examples with a source of its own length."""
  rng = np.random.default_rng(seed)
  return [{**e, 'source': rng.integers(2, 50, int(rng.integers(1, 16))).astype(np.int32)} for e in several(count, seed)]


def test_sources_are_packed_in_step_with_the_decoder():
  examples = translations()
  rows = rows_lib.packed(examples, length=24, source_length=20)
  batch = rows.batch(range(len(rows)))
  by_id = {tuple(e['id']): e for e in examples}
  seen = 0
  for b in range(len(rows)):
    for e, id_2 in enumerate(batch['examples'][b]):
      if not id_2.any():
        continue
      example, seen = by_id[tuple(id_2)], seen + 1
      here, there = batch['segments'][b] == e + 1, batch['source_segments'][b] == e + 1
      np.testing.assert_array_equal(batch['tokens'][b][here], example['tokens'])
      np.testing.assert_array_equal(batch['source'][b][there], example['source'])
      np.testing.assert_array_equal(batch['source_positions'][b][there], np.arange(len(example['source'])))
  assert seen == len(examples) and batch['source'].shape == (len(rows), 20) and len(rows) < len(examples)


def test_a_source_that_is_too_long_is_dropped_or_cut_to_its_own_length():
  examples = [{**make(6), 'source': np.arange(9, dtype=np.int32)}, {**make(7), 'source': np.arange(3, dtype=np.int32)}]
  assert rows_lib.fit(examples, length=8, source_length=5).dropped == 1
  cut = rows_lib.fit(examples, length=8, source_length=5, overlong='cut')
  assert [len(e['source']) for e in cut.examples] == [5, 3] and [len(e['tokens']) for e in cut.examples] == [6, 7]


def test_sources_without_a_length_and_examples_that_do_not_fit_are_refused():
  with pytest.raises(ValueError, match='need source_length'):
    rows_lib.unpacked(translations(2), length=24).batch([0])
  with pytest.raises(ValueError, match=r'up to 9 tokens .* do not fit rows of 8'):
    rows_lib.packed([make(9)], length=8)


@pytest.mark.parametrize('segments, said', [
    ([1, 1, 2, 1, 0], '1 2 1 0'), ([1, 1, 0, 2, 2], '1 0 2'), ([2, 2, 3, 0, 0], '2 3 0'), ([1, 3, 3, 3, 0], '1 3 0'), ([0, 1, 1, 1, 1], '0 1')])
def test_segments_that_run_backwards_are_refused_by_row(segments, said):
  good = [1, 1, 2, 2, 0]
  batch = dict(segments=np.array([good, segments], np.int32), positions=np.zeros((2, 5), np.int32))
  with pytest.raises(ValueError, match=f'row 1: its segments run {said}; they must count up'):
    rows_lib.checked(batch)
  assert rows_lib.checked(dict(segments=np.array([good, [0] * 5]), positions=np.zeros((2, 5))))


def test_segments_of_rows_that_hold_groups_are_checked_too():
  good = np.ones((3, 2, 4), np.int32)
  assert rows_lib.checked(dict(segments=good)) is not None
  bad = good.copy()
  bad[1, 0] = [1, 2, 1, 1]
  with pytest.raises(ValueError, match='row 1: its segments run 1 2 1'):
    rows_lib.checked(dict(segments=bad))
