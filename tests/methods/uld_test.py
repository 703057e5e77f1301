"""Distillation across tokenizers: spans of text by hand and by real tokenizers, and the loss against plain numpy."""
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.core.types import Head, Model, Role
from distill_jax.data import rows as rows_lib, text as text_lib
from distill_jax.methods import METHODS
from distill_jax.methods.uld import align, common_spans

WORDS = ['Tom has 12 apples. He gives 5 to Ann.', 'naïve café – ½ of 30 € is 15 €', '漢字 and 3 apples', '']


@pytest.fixture(scope='module')
def bpe():
  return text_lib.train_bpe(WORDS * 40, size=330)


@pytest.fixture(scope='module')
def characters():
  """A byte-level tokenizer with no merges: every byte is a token."""
  return text_lib.train_bpe(['q'], size=258)


@pytest.fixture(scope='module')
def pieces():
  """Not byte-level: words with a mark before them, unknown characters as one token."""
  from tokenizers import Tokenizer, models, pre_tokenizers
  from transformers import PreTrainedTokenizerFast
  vocab = ['<unk>', '<eos>', *sorted({'▁' + word for text in WORDS for word in text.split()} - {'▁漢字'})]
  made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocab)}, unk_token='<unk>'))
  made.pre_tokenizer = pre_tokenizers.Metaspace()
  return text_lib.wrap(PreTrainedTokenizerFast(tokenizer_object=made, eos_token='<eos>', unk_token='<unk>'))


def test_spans_end_where_a_token_of_both_does():
  assert common_spans([1, 2, 5, 6, 9], [2, 4, 6, 9]) == ([1, 1, 2, 2, 3], [1, 2, 2, 3])
  assert common_spans([3, 7], [3, 7]) == ([1, 2], [1, 2])
  assert common_spans([2, 9], [5, 9]) == ([1, 1], [1, 1])
  assert common_spans([2, 2, 4], [2, 4]) == ([1, 1, 2], [1, 2]), 'tokens inside one character end where it does'
  assert common_spans([2, 5, 6], [2, 5, 7]) == ([1, 2, 0], [1, 2, 0]), 'what only one of them has at the end'
  assert common_spans([], []) == ([], [])


@pytest.mark.parametrize('text', WORDS)
def test_where_tokens_end_in_bytes(bpe, characters, pieces, text):
  for one in (bpe, characters, pieces):
    ids, ends = one.encode_ends(text)
    assert ids == one.encode(text) and ends == sorted(ends) and (not ends or ends[-1] == len(text.encode()))
  assert characters.encode_ends(text)[1] == list(range(1, len(text.encode()) + 1))
  ids, ends = bpe.encode_ends(text)
  for (first, last), n in zip(itertools.pairwise([0, *ends]), range(1, len(ids) + 1)):
    if all(x < 0x80 for x in text.encode()):
      assert bpe.decode(ids[:n]) == text.encode()[:last].decode() and first < last


@pytest.mark.parametrize('text', WORDS)
def test_spans_of_two_tokenizers_cover_the_same_text(bpe, characters, pieces, text):
  for ours, theirs in itertools.permutations((bpe, characters, pieces), 2):
    example = rows_lib.render(ours, 'Q: ', text, id_2=np.zeros(2, np.uint32))
    made = align(ours, theirs, 'Q: ', text, example, teacher_length=80)
    count = int(made['teacher_segments'].sum())
    theirs_said = [*theirs.encode('Q: '), *theirs.encode(text), theirs.eos_id]
    assert made['teacher_tokens'][:count].tolist() == theirs_said[:-1] and made['teacher_targets'][:count].tolist() == theirs_said[1:]
    assert set(made['spans']) - {0} == set(made['teacher_spans']) - {0} == set(range(1, made['spans'].max() + 1))
    assert (made['spans'] > 0).tolist() == (example['weights'] > 0).tolist()
    end = made['spans'].max()      # that of EOS, alone
    assert example['targets'][made['spans'] == end].tolist() == [ours.eos_id]
    assert made['teacher_targets'][made['teacher_spans'] == end].tolist() == [theirs.eos_id]
    for n in range(1, end):
      a, b = ours.decode(example['targets'][made['spans'] == n]), theirs.decode(made['teacher_targets'][made['teacher_spans'] == n])
      if pieces not in (ours, theirs):
        assert a == b and a


def test_equal_tokenizers_give_a_span_a_token(bpe):
  example = rows_lib.render(bpe, 'Q: ', WORDS[0], id_2=np.zeros(2, np.uint32))
  made = align(bpe, bpe, 'Q: ', WORDS[0], example, teacher_length=64)
  n = len(example['tokens'])
  np.testing.assert_array_equal(made['spans'], made['teacher_spans'][:n])
  assert made['spans'][made['spans'] > 0].tolist() == list(range(1, len(bpe.encode(WORDS[0])) + 2))


def test_a_text_that_is_too_long_for_the_teacher_is_named(bpe, characters):
  example = rows_lib.render(bpe, 'Q: ', WORDS[0], id_2=np.zeros(2, np.uint32))
  with pytest.raises(ValueError, match='40 tokens for the teacher, teacher_length=32: raise it'):
    align(bpe, characters, 'Q: ', WORDS[0], example, teacher_length=32)


def table(size):
  """A model whose logits are looked up."""
  def apply(params, batch, *, key_B=None, **_):
    return {'hidden': jnp.take(params['logits'], jnp.where(batch['segments'] > 0, batch['tokens'], 0), axis=0), 'head': Head(jnp.eye(size))}
  return Role(Model(None, apply, (), None))


V, W = 6, 9
RNG = np.random.default_rng(0)
PARAMS = {'student': {'logits': RNG.normal(size=(V, V)).astype(np.float32)}, 'teacher': {'logits': 2 * RNG.normal(size=(W, W)).astype(np.float32)}}
# row 0: spans {1, 2}|{1}, {3}|{2, 3, 4}, {4}|{5}; row 1: {1}|{1, 2}, then {2, 3}|{3}, where a target of weight 0 drops the span
BATCH = dict(
    tokens=np.asarray([[0, 1, 2, 3, 4], [5, 4, 3, 2, 0]], np.int32), targets=np.asarray([[1, 2, 3, 4, 5], [4, 3, 2, 1, 0]], np.int32),
    segments=np.asarray([[1] * 5, [1] * 4 + [0]], np.int32), weights=np.asarray([[0, 1, 1, 2, 1], [0, 1, 0, 1, 0]], np.float32),
    spans=np.asarray([[0, 1, 1, 2, 3], [0, 1, 2, 2, 0]], np.int32), row=np.zeros((2, 2), np.uint32),
    teacher_tokens=np.asarray([[8, 7, 6, 5, 4, 3], [1, 2, 3, 4, 0, 0]], np.int32), teacher_targets=np.asarray([[7, 6, 5, 4, 3, 2], [2, 3, 4, 5, 0, 0]], np.int32),
    teacher_segments=np.asarray([[1] * 6, [1] * 4 + [0] * 2], np.int32), teacher_spans=np.asarray([[0, 1, 2, 2, 2, 3], [0, 1, 1, 2, 0, 0]], np.int32))


def softmax(x):
  e = np.exp(np.asarray(x, np.float64) - np.max(x, -1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


def merged(table, tokens, targets, spans, number):
  """Chain rule: the last token's distribution times the probability of the earlier ones."""
  places = [i for i, n in enumerate(spans) if n == number]
  p = [softmax(table[tokens[i]]) for i in places]
  return np.prod([p[k][targets[i]] for k, i in enumerate(places[:-1])]) * p[-1]


def plain(student):
  """The sum by spans -> (sum of weight times distance, weight)."""
  total = weight = 0.0
  for b, number, w in [(0, 1, 1.0), (0, 2, 2.0), (0, 3, 1.0), (1, 1, 1.0)]:
    p = merged(student, BATCH['tokens'][b], BATCH['targets'][b], BATCH['spans'][b], number)
    q = merged(PARAMS['teacher']['logits'], BATCH['teacher_tokens'][b], BATCH['teacher_targets'][b], BATCH['teacher_spans'][b], number)
    p = np.append(p, np.zeros(W - V))
    total, weight = total + w * np.abs(np.sort(p)[::-1] - np.sort(q)[::-1]).sum(), weight + w
  return total, weight


@pytest.fixture(scope='module')
def measure():
  method = METHODS['uld']({'student': table(V), 'teacher': table(W)}, strength=0.7)
  def both(student):
    params = {**PARAMS, 'student': {'logits': student}}
    terms, metrics, _ = method.loss(params, {**BATCH, 'label': method.label(params, BATCH, None)}, None)
    return metrics['divergence'].total, (terms, metrics)
  return jax.jit(jax.value_and_grad(both, has_aux=True))


def test_value_is_that_of_numpy(measure):
  (_, (terms, metrics)), _ = measure(PARAMS['student']['logits'])
  total, weight = plain(PARAMS['student']['logits'])
  assert float(metrics['divergence'].total) == pytest.approx(total, rel=1e-5) and float(metrics['divergence'].weight) == weight == 5
  assert float(terms['uld'].value) == pytest.approx(0.7 * total / weight, rel=1e-5)
  logps = np.log(softmax(PARAMS['student']['logits']))
  pairs = [(1, 2, 1), (2, 3, 1), (3, 4, 2), (4, 5, 1), (4, 3, 1), (2, 1, 1)]
  assert float(terms['cross_entropy'].value) == pytest.approx(-sum(w * logps[a, b] for a, b, w in pairs) / 7, rel=1e-5)


def test_gradient_is_the_slope_of_numpys_value(measure):
  """Through the last token of a span and through the probabilities of its earlier ones."""
  _, grad = measure(PARAMS['student']['logits'])
  base, step = np.asarray(PARAMS['student']['logits'], np.float64), 1e-6
  for i, j in itertools.product(range(V), range(V)):
    moved = [base.copy() for _ in range(2)]
    moved[0][i, j] += step
    moved[1][i, j] -= step
    slope = (plain(moved[0])[0] - plain(moved[1])[0]) / (2 * step)
    assert float(grad[i, j]) == pytest.approx(slope, abs=2e-5), (i, j)


def test_a_model_is_at_no_distance_from_itself():
  """Its own ids and text: value 0, gradient 0 but for that of the cross-entropy."""
  own = {**BATCH, **{f'teacher_{name}': BATCH[name] for name in ('tokens', 'targets', 'segments', 'spans')}}
  method = METHODS['uld']({'student': table(V), 'teacher': table(V)})
  def distance(student):
    params = {'student': {'logits': student}, 'teacher': PARAMS['student']}
    return method.loss(params, {**own, 'label': method.label(params, own, None)}, None)[0]['uld'].value
  value, grad = jax.jit(jax.value_and_grad(distance))(PARAMS['student']['logits'])
  assert float(value) == 0 and not np.asarray(grad).any()


def test_settings_that_are_refused():
  with pytest.raises(ValueError, match='strength=-1 must be at least 0'):
    METHODS['uld']({'student': table(V), 'teacher': table(W)}, strength=-1)
  with pytest.raises(ValueError, match='name a teacher in roles'):
    METHODS['uld']({'student': table(V)})
