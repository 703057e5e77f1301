"""Export: a role leaves as a Hugging Face directory, proved by running transformers on it where torch is installed."""
import importlib.util
import shutil
from typing import Any

import jax
import numpy as np

from distill_jax.core import keys, tree
from distill_jax.decode import sample
from distill_jax.models import weights
from distill_jax.stages import records
from distill_jax.stages.roles import load_role, model_config, parameters

PROOF_PROMPTS = 4
PROOF_TOKENS = 48
TOLERANCE = 1e-4


def export(out, inputs, *, seed, how, log, roles, task=None, dtype='float32', card='') -> dict[str, Any]:
  """Writes out/model (config.json, model.safetensors, tokenizer, README.md) for one role and compares it with what transformers makes of it.

  dtype: of the weights on disk ('float32', 'bfloat16', 'float16').  card: a sentence for the model card.
  """
  if len(roles) != 1:
    raise ValueError(f'export: one role, got {sorted(roles)}')
  name, definition = next(iter(roles.items()))
  role = load_role(definition, seed=seed)
  directory = out / 'model'
  model, config = model_config(role)
  shutil.rmtree(directory, ignore_errors=True)
  weights.write_hf(directory, model, config, jax.device_get(role.params), dtype=dtype,
                   tokens=dict(eos_token_id=role.text.eos_id, pad_token_id=role.text.pad_id, bos_token_id=role.text.bos_id))
  role.text.save(directory)
  prompts = _prompts(task)
  (directory / 'README.md').write_text(_card(name, role, card, prompts[0]), encoding='utf-8')
  log.progress(1, 2, 'written')
  stored = tree.cast(tree.cast(role.params, dtype), 'float32')
  facts = prove(directory, role._replace(params=stored), prompts)
  log.progress(2, 2, 'proved with transformers' if facts['proved'] is True else str(facts['proved'] or 'NOT EQUAL to transformers'))
  return dict(kind='export', directory=str(directory.relative_to(out.parent)), dtype=dtype,
              bytes=sum(p.stat().st_size for p in directory.rglob('*') if p.is_file()), **facts)


def prove(directory, role, prompts) -> dict[str, Any]:
  """Runs transformers on `directory`: largest logit difference in float32, and whether greedy texts are equal. Says so where torch is missing."""
  if importlib.util.find_spec('torch') is None:
    return dict(proved='not proved: torch is not installed (pip install torch, then delete this stage and run again)', max_logit_difference=None,
                same_greedy=None)
  import torch
  import transformers
  transformers.utils.logging.disable_progress_bar()
  theirs = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
  tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
  worst, same = 0.0, True
  texts, _ = sample.write(role, role.params, prompts, [keys.content_id(p) for p in prompts], jax.random.key(0), max_new_tokens=PROOF_TOKENS,
                          temperature=0.0, batch=len(prompts))
  start = [] if role.text.bos_id is None else [role.text.bos_id]
  rows = [start + tokenizer(prompt, add_special_tokens=False)['input_ids'] for prompt in prompts]
  for ids, ours_LV, several in zip(rows, _logits(role, rows), texts):
    with torch.no_grad():
      theirs_LV = theirs(torch.tensor([ids])).logits[0].float().numpy()
      said = theirs.generate(torch.tensor([ids]), max_new_tokens=PROOF_TOKENS, do_sample=False, pad_token_id=role.text.pad_id)[0, len(ids):].tolist()
    worst = max(worst, float(np.abs(ours_LV[:len(ids)] - theirs_LV).max()))
    ended = said[:said.index(role.text.eos_id) + 1] if role.text.eos_id in said else said
    same = same and ended == [int(t) for t in several[0]['tokens']]
  return dict(proved=bool(same and worst < TOLERANCE), max_logit_difference=worst, same_greedy=same)


def _logits(role, rows: list[list[int]]) -> np.ndarray:
  """float32 logits [rows, longest, V], by one compiled call."""
  batch = {name: np.zeros((len(rows), max(map(len, rows))), np.int32) for name in ('tokens', 'segments')}
  for number, ids in enumerate(rows):
    batch['tokens'][number, :len(ids)], batch['segments'][number, :len(ids)] = ids, 1

  @jax.jit
  def run(params, batch):
    out = role.model.apply(params, batch)
    return out['head'].logits(out['hidden'])
  return np.asarray(run(role.params, batch))


def _prompts(task) -> list[str]:
  if task is None:
    return ['Once upon a time', 'The answer is', 'A', 'Tom has 3 apples.']
  made = records.make_task(task)
  return [made.prompt(e) for e in list(made.examples('test'))[:PROOF_PROMPTS]]


def _card(name, role, card, prompt) -> str:
  return (f'---\nlibrary_name: transformers\npipeline_tag: text-generation\ntags: [distillation, distill_jax]\n---\n\n# {name}\n\n'
          f'A model of {parameters(role):,} parameters, trained and exported by distill_jax. {card}\n\n'
          f'```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\ntokenizer = AutoTokenizer.from_pretrained(DIR)\n'
          f'model = AutoModelForCausalLM.from_pretrained(DIR)\n'
          f'ids = tokenizer({prompt!r}, return_tensors="pt", add_special_tokens={role.text.bos_id is not None})\n'
          f'print(tokenizer.decode(model.generate(**ids, max_new_tokens=160)[0]))\n```\n')
