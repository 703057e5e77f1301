"""The calculator for plain equations beside an encoder-decoder as it writes."""
import jax
import numpy as np

from distill_jax.core.types import Role
from distill_jax.data import text as text_lib
from distill_jax.decode import sample
from distill_jax.models import MODELS
from distill_jax.tasks import equations


def test_results_are_forced_whatever_the_model_would_write():
  text = text_lib.train_bpe(['7 + 5 = 12. 12*3=36. The answer is 36.'] * 4, size=300)
  model = MODELS['encoder_decoder'](vocab_size=text.vocab_size, width=16, layers=1, heads=2, mlp_width=16)
  role = Role(model, text, model.init(jax.random.key(0)))
  asks = {'': '7 + 5 =', '7 + 5 = 12': '. 12*3='}      # what a taught student would write by itself
  def writer(written):
    return asks.get(written) or equations.writer(written)
  prompts, ids = ['Ann has 7 pens.', 'Ben has 3 cups.'], [np.asarray([0, i], np.uint32) for i in (1, 2)]
  texts, _ = sample.write(role, role.params, prompts, ids, jax.random.key(1), max_new_tokens=18, temperature=0.0, writer=writer, batch=2)
  assert all(several[0]['text'].startswith('7 + 5 = 12. 12*3=36') for several in texts)
