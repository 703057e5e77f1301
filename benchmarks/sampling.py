"""Sampling against transformers.generate, and against the floor: the bytes a step must read over what this machine's memory gives.

Part of `python -m benchmarks.run` (--only=sample, greedy, eight, floor).
sample, greedy: 8 x 512, vocabulary 32,000, 16 prompts of 32 tokens, 128 new ones.  eight: the bundled teacher, 8 samples of each of 48
bundled questions, prompts and answers of all lengths; theirs in batches of 8 questions with num_return_sequences=8, ours through 64 rows;
only tokens up to the end of a text count.  floor: a step of `sample`.
"""
import concurrent.futures
import os
import statistics
import tempfile

import jax
import numpy as np

from benchmarks import measure
from distill_jax.core import keys
from distill_jax.decode import sample
from distill_jax.models import MODELS, weights
from distill_jax.stages import records
from distill_jax.stages.roles import load_role, model_config

ROWS, PROMPT, NEW = 16, 32, 128
QUESTIONS, SAMPLES, ASKED = 48, 8, 8      # ASKED: questions of one batch of theirs


def side_by_side(count: int, quick: bool, *, greedy: bool) -> dict:
  """One batch of equal lengths."""
  import torch
  rows, prompt, new, vocab = (2, 8, 8, 512) if quick else (ROWS, PROMPT, NEW, 32000)
  config = measure.shape(512, 8, vocab=vocab, length=prompt + new)
  ours, prompts = _ours(config, rows, prompt, new, greedy)
  theirs, told = measure.torch_twin(config).eval(), torch.tensor(prompts, dtype=torch.long)

  def generate():
    with torch.no_grad():
      return theirs.generate(told, attention_mask=torch.ones_like(told), max_new_tokens=new, min_new_tokens=new,
                             do_sample=not greedy, top_k=0, pad_token_id=0)
  seconds = measure.interleave({'ours': ours, 'transformers': generate}, count)
  median = {name: statistics.median(values) for name, values in seconds.items()}
  return dict(name=f'{"greedy" if greedy else "sampled"} text, tokens/s', ours=rows * new / median['ours'],
              other=rows * new / median['transformers'], against='transformers.generate',
              ratio=measure.ratio(seconds, 'transformers', 'ours'), goal=1.6)


def _ours(config: dict, rows: int, prompt: int, new: int, greedy: bool):
  model = MODELS['transformer'](**config)
  params = jax.jit(model.init)(jax.random.key(0))
  prompts = np.random.default_rng(0).integers(0, config['vocab_size'], (rows, prompt)).astype(np.int32)
  ids = np.stack([keys.content_id(i) for i in range(rows)])
  run = jax.jit(lambda params, prompts, ids, key: sample.sample(
      model, params, prompts, np.ones(prompts.shape, np.int32), ids, key, max_new_tokens=new, temperature=0.0 if greedy else 1.0, eos_id=-1,
      pad_id=0).tokens_BNT)
  return (lambda: np.asarray(run(params, prompts, ids, jax.random.key(1)))), prompts


def eight(count: int, quick: bool) -> dict:
  """Several samples of many questions that end when they end."""
  import torch
  import transformers
  questions, samples, asked, new = (4, 2, 2, 24) if quick else (QUESTIONS, SAMPLES, ASKED, 112)
  role = load_role(dict(load='bundled:teacher'))
  task = records.make_task(dict(task='gsm8k', source='bundled', counts=dict(train=questions), seed=1))
  examples = list(task.examples('train'))
  prompts, ids = [task.prompt(e) for e in examples], [keys.id_from_text(e['id']) for e in examples]
  longest = max(len(row) for row in role.text.encode_many(prompts))
  with tempfile.TemporaryDirectory() as directory:
    model, config = model_config(role)
    weights.write_hf(directory, model, config, jax.device_get(role.params), dtype='float32',
                     tokens=dict(eos_token_id=role.text.eos_id, pad_token_id=role.text.pad_id, bos_token_id=role.text.bos_id))
    role.text.save(directory)
    transformers.utils.logging.disable_progress_bar()
    theirs = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
  tokenizer = role.text.tokenizer
  tokenizer.padding_side = 'left'
  useful = {'ours': [], 'transformers': []}

  def ours():
    _, stats = sample.write(role, role.params, prompts, ids, jax.random.key(0), max_new_tokens=new, samples=samples, temperature=0.7,
                            batch=asked * samples, length=longest)
    useful['ours'].append(stats['tokens'])

  def generate():
    total = 0
    for at in range(0, questions, asked):
      told = tokenizer(prompts[at:at + asked], return_tensors='pt', padding=True, add_special_tokens=False)
      with torch.no_grad():
        out = theirs.generate(input_ids=told['input_ids'], attention_mask=told['attention_mask'], max_new_tokens=new, do_sample=True,
                              temperature=0.7, top_k=0, num_return_sequences=samples, eos_token_id=role.text.eos_id,
                              pad_token_id=role.text.pad_id)
      written = out[:, told['input_ids'].shape[1]:].numpy()
      ends = written == role.text.eos_id
      total += int(np.where(ends.any(1), ends.argmax(1) + 1, written.shape[1]).sum())
    useful['transformers'].append(total)

  seconds = measure.interleave({'ours': ours, 'transformers': generate}, count)
  speed = {name: [n / s for n, s in zip(useful[name][1:], values)] for name, values in seconds.items()}
  return dict(name='8 samples a question, tokens/s', ours=statistics.median(speed['ours']), other=statistics.median(speed['transformers']),
              against='transformers.generate', ratio=measure.ratio(speed, 'ours', 'transformers'), goal=3.0)


def floor(count: int, quick: bool) -> dict:
  """Seconds of one step of `side_by_side` over the seconds in which memory gives the weights and, on the mean, the cache it reads."""
  rows, prompt, new, vocab = (2, 8, 8, 512) if quick else (ROWS, PROMPT, NEW, 32000)
  config = measure.shape(512, 8, vocab=vocab, length=prompt + new)
  ours, _ = _ours(config, rows, prompt, new, False)
  source = np.ones(((1 if quick else os.cpu_count()), 1 << (18 if quick else 25)), np.float32)
  target = np.ones_like(source)      # written before, so that no page is new when it is timed
  with concurrent.futures.ThreadPoolExecutor(len(source)) as threads:
    copy = lambda: list(threads.map(np.copyto, target, source))
    seconds = measure.interleave({'ours': ours, 'copy': copy}, count)
  bandwidth = 2 * source.nbytes / statistics.median(seconds['copy'])
  params = jax.eval_shape(MODELS['transformer'](**config).init, jax.random.key(0))
  read = 4 * (sum(x.size for x in jax.tree.leaves(params)) + 2 * config['layers'] * rows * config['width'] * (prompt + new / 2))
  step = statistics.median(seconds['ours']) / new
  return dict(name='a step, times the floor', ours=step / (read / bandwidth), other=None,
              against=f'{read / 1e6:,.0f} MB at {bandwidth / 1e9:.1f} GB/s', ratio=None, goal=1.0)
