"""Scoring the options of few-shot prompts: prompts read once and batched, against a loop of single rows."""
import statistics

import jax
import numpy as np

from benchmarks import measure
from distill_jax.core.types import Role
from distill_jax.decode import likelihood, score
from distill_jax.models import MODELS


class Ids:
  """A tokenizer whose texts are ids: what is measured is the model."""
  eos_id, pad_id, bos_id, vocab_size = 1, 0, None, None
  encode_many = staticmethod(lambda texts: [[int(word) for word in text.split()] for text in texts])


def options(count: int, quick: bool) -> dict:
  """Prompts of 96 to 128 tokens with 8 options of 1 to 4 tokens; GPT-2 shape 4 x 256, vocabulary 8,000."""
  prompts, vocab, width = (4, 64, 64) if quick else (32, 8000, 256)
  rng = np.random.default_rng(0)
  config = measure.shape(width, 4, vocab=vocab, length=144)
  role = Role(MODELS['transformer'](**config), Ids())
  params = jax.jit(role.model.init)(jax.random.key(0))
  draw = lambda n: rng.integers(2, vocab, n).tolist()
  asked = [draw(int(rng.integers(96, 129))) for _ in range(prompts)]
  wanted = [[draw(1 + k % 4) for k in range(8)] for _ in asked]
  say = lambda ids: ' '.join(map(str, ids))
  spoken = [say(ids) for ids in asked], [[say(ids) for ids in several] for several in wanted]
  single = jax.jit(lambda params, row: score.score(role.model, params, row))
  found = {}

  def ours():
    found['ours'] = likelihood.of_texts(role, params, *spoken)

  def loop():
    found['loop'] = [[(_alone(single, params, prompt, ids), len(ids)) for ids in several] for prompt, several in zip(asked, wanted)]
  seconds = measure.interleave({'ours': ours, 'loop': loop}, count)
  np.testing.assert_allclose(*(np.asarray([x for several in found[name] for x, _ in several]) for name in ('ours', 'loop')), rtol=1e-3)
  median = {name: statistics.median(values) for name, values in seconds.items()}
  return dict(name='options scored, options/s', ours=8 * prompts / median['ours'], other=8 * prompts / median['loop'], against='loop of single rows',
              ratio=measure.ratio(seconds, 'loop', 'ours'), goal=5.0)


def _alone(single, params, prompt: list[int], ids: list[int]) -> float:
  """One row of 144 slots, so that one program serves all."""
  whole = np.zeros(145, np.int32)
  whole[:len(prompt) + len(ids)] = prompt + ids
  real = (np.arange(144) < len(prompt) + len(ids) - 1).astype(np.int32)
  logps = single(params, dict(tokens=whole[None, :-1], targets=whole[None, 1:], segments=real[None], positions=real[None] * np.arange(144)[None]))
  return float(np.asarray(logps)[0, len(prompt) - 1:len(prompt) + len(ids) - 1].sum())
