"""Tokens at a mask: against the whole forward pass of each prompt alone."""
import jax
import numpy as np
import pytest

from distill_jax.core.types import Role
from distill_jax.data import text as text_lib
from distill_jax.decode import masks
from distill_jax.models import MODELS


@pytest.fixture(scope='module')
def role():
  text = text_lib.train_bpe(['red blue green'], size=290, mask=True)
  model = MODELS['encoder'](vocab_size=text.vocab_size, width=16, layers=1, heads=2, mlp_width=16, max_length=64, lm_head=True)
  params = jax.tree.map(lambda x: 3 * x if x.ndim > 1 else x, model.init(jax.random.key(0)))
  return Role(model, text, params)


def test_equals_single_prompts(role):
  prompts, texts = ['a<mask>.', 'the colour of it is<mask> or so', '<mask>'], [['a', 'b'], ['c'], ['x', 'y', 'z']]
  found = masks.of_tokens(role, role.params, prompts, texts, batch=2)
  for prompt, several, scores in zip(prompts, texts, found, strict=True):
    ids = np.zeros((1, 48), np.int32)
    held = role.text.encode(prompt)
    ids[0, :len(held)] = held
    out = role.model.apply(role.params, dict(tokens=ids, segments=(np.arange(48) < len(held))[None].astype(np.int32)))
    logps = np.asarray(jax.nn.log_softmax(out['head'].logits(out['hidden'])))[0, held.index(role.text.tokenizer.mask_token_id)]
    np.testing.assert_allclose([x for x, _ in scores], [logps[role.text.encode(t)[0]] for t in several], rtol=1e-4, atol=1e-5)
    assert [n for _, n in scores] == [1] * len(several)


def test_bad_input(role):
  with pytest.raises(ValueError, match='has 0 masks; there must be one'):
    masks.of_tokens(role, role.params, ['a'], [['b']])
  with pytest.raises(ValueError, match="candidate 'bc' is 2 tokens"):
    masks.of_tokens(role, role.params, ['a<mask>'], [['bc']])
  with pytest.raises(ValueError, match='the model reads 64'):
    masks.of_tokens(role, role.params, ['a' * 64 + '<mask>'], [['b']])
