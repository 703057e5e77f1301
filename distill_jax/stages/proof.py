"""Proof: a checkpoint read by us and by transformers, on the same prompts: logits and greedy texts side by side."""
import importlib.util
from typing import Any, Callable, Sequence

import jax
import numpy as np

from distill_jax.core import keys
from distill_jax.core.types import Role
from distill_jax.decode import sample

TOKENS = 64          # of a greedy text
ABSOLUTE, RELATIVE = 1e-4, 1e-5      # a difference of logits up to ABSOLUTE + RELATIVE x the largest logit is float32 noise
NO_TORCH = 'torch is not installed (pip install torch --index-url https://download.pytorch.org/whl/cpu)'
UNKNOWN = dict(max_logit_difference=None, bound=None, same_greedy=None, first_difference=None, prompts=0, greedy_tokens=0)
ANY_TEXT = ('Once upon a time', 'The answer is', 'A', '1 + 1 =')      # something in them is in every vocabulary


def has_torch() -> bool:
  """Whether transformers can run here."""
  return importlib.util.find_spec('torch') is not None


def transformers_model(directory) -> Any:
  """What transformers makes of a directory, in float32 on the CPU."""
  import torch
  import transformers
  transformers.utils.logging.disable_progress_bar()
  sourced = transformers.AutoConfig.from_pretrained(directory).is_encoder_decoder
  kind = transformers.AutoModelForSeq2SeqLM if sourced else transformers.AutoModelForCausalLM
  return kind.from_pretrained(directory, dtype=torch.float32).eval()


def peft_model(directory, base) -> Any:
  """What `peft` makes of an adapter directory on the transformers model `base`."""
  import peft
  return peft.PeftModel.from_pretrained(transformers_model(base), directory).eval()


def prove(role: Role, load: Callable[[], Any], prompts: Sequence[str] = ANY_TEXT, *, seed: int = 0) -> dict[str, Any]:
  """Compares `role` with the torch model that `load()` gives: logits over the prompts and over random ids, then greedy texts.

  -> proved: True, False, or a sentence that says why nothing could be compared; max_logit_difference, and bound: what is float32 noise of
  these logits; same_greedy; first_difference: None, or dict(prompt, place: how many tokens are equal, ours, theirs, gap: of the two in
  their logits); prompts and greedy_tokens: how many were compared. A first difference at a gap below the bound is a tie, and no fault.
  """
  if not has_torch():
    return {**UNKNOWN, 'proved': f'not proved: {NO_TORCH}'}
  theirs = load()
  rows, new = _rows(role, prompts, seed)
  start_id, drawn = role.model.start_id, _random(role, seed)
  prompts, every = list(rows), [*rows.values(), *drawn] if start_id is None else [(ids, [start_id, *drawn[0]]) for ids in (*rows.values(), drawn[1])]
  with jax.default_matmul_precision('highest'):
    told = _logits(role, every)
    texts = sample.write(role, role.params, prompts, [keys.content_id(p) for p in prompts], jax.random.key(0), max_new_tokens=new,
                         temperature=0.0, batch=len(prompts))[0] if prompts else []
  worst, largest = 0.0, 0.0
  for ids, ours_LV in zip(every, told):
    theirs_LV = _theirs(theirs, ids)
    worst, largest = max(worst, float(np.abs(ours_LV[:len(theirs_LV)] - theirs_LV).max())), max(largest, float(np.abs(theirs_LV).max()))
  bound = ABSOLUTE + RELATIVE * largest
  first = None
  for prompt, ids, several in zip(prompts, rows.values(), texts):
    found = _first_difference(theirs, ids, [int(t) for t in several[0]['tokens']], _greedy(theirs, role.text, ids, new, start_id), start_id)
    if found and (first is None or found['gap'] > first['gap']):
      first = dict(prompt=prompt, **found)
  return dict(proved=bool(worst <= bound and (first is None or first['gap'] <= 2 * bound)), max_logit_difference=worst, bound=bound,
              same_greedy=first is None, first_difference=first, prompts=len(prompts),
              greedy_tokens=sum(len(one['tokens']) for (one,) in texts))


def _rows(role: Role, prompts: Sequence[str], seed: int) -> tuple[dict[str, list[int]], int]:
  """({prompt: ids} of those that fit the model and hold a token, new tokens that fit behind them)."""
  most = (role.model.config or {}).get('max_length') or 1 << 30
  new = max(min(TOKENS, most // 2), 1)
  if role.model.start_id is not None:
    return dict(zip(prompts, role.text.encode_whole(prompts))), new
  start = [] if role.text.bos_id is None else [role.text.bos_id]
  rows = {prompt: start + ids for prompt, ids in zip(prompts, role.text.encode_many(prompts))}
  return {prompt: ids for prompt, ids in rows.items() if ids and len(ids) + new <= most}, new


def _random(role: Role, seed: int) -> list[list[int]]:
  """Two rows of random ids."""
  most = (role.model.config or {}).get('max_length') or 1 << 30
  return np.random.default_rng(seed).integers(0, role.text.vocab_size, (2, min(32, most))).tolist()


def _logits(role: Role, rows: Sequence[Any]) -> np.ndarray:
  """float32 logits [rows, longest, V], by one compiled call. A row is its ids; of a model with an encoder (source ids, decoder ids)."""
  sides = dict(tokens=rows) if role.model.start_id is None else dict(zip(('source', 'tokens'), zip(*rows)))
  batch = {}
  for name, side in sides.items():
    segments = 'segments' if name == 'tokens' else 'source_segments'
    batch |= {key: np.zeros((len(side), max(map(len, side))), np.int32) for key in (name, segments)}
    for number, ids in enumerate(side):
      batch[name][number, :len(ids)], batch[segments][number, :len(ids)] = ids, 1

  @jax.jit
  def run(params, batch):
    out = role.model.apply(params, batch)
    return out['head'].logits(out['hidden'])
  return np.asarray(run(role.params, batch))


def _theirs(model, ids: Any) -> np.ndarray:
  """Their logits [tokens, V] of a row as in `_logits`."""
  import torch
  source, tokens = ids if isinstance(ids, tuple) else (ids, None)
  more = {} if tokens is None else dict(decoder_input_ids=torch.tensor([list(tokens)]), use_cache=False)
  with torch.no_grad():
    return model(input_ids=torch.tensor([list(source)]), **more).logits[0].float().numpy()


def _greedy(model, text, ids: Sequence[int], new: int, start_id: int | None) -> list[int]:
  """Their greedy tokens, up to and with the end of text. By none of the checkpoint's own settings: a penalty would change them."""
  import torch
  import transformers
  # rows of the head that no token has are never drawn by us
  padded = list(range(text.vocab_size, model.get_input_embeddings().weight.shape[0]))
  config = transformers.GenerationConfig(
      max_new_tokens=new, do_sample=False, suppress_tokens=padded or None, eos_token_id=text.eos_id,
      pad_token_id=text.pad_id, bos_token_id=text.bos_id, decoder_start_token_id=start_id)
  model.generation_config = config
  with torch.no_grad():
    said = model.generate(input_ids=torch.tensor([list(ids)]), attention_mask=torch.ones((1, len(ids)), dtype=torch.long),
                          generation_config=config)[0, len(ids) if start_id is None else 1:].tolist()
  return said[:said.index(text.eos_id) + 1] if text.eos_id in said else said


def _first_difference(model, ids, ours: list[int], theirs: list[int], start_id: int | None) -> dict[str, Any] | None:
  if ours == theirs:
    return None
  place = next((i for i, (a, b) in enumerate(zip(ours, theirs)) if a != b), min(len(ours), len(theirs)))
  if place == min(len(ours), len(theirs)):
    return dict(place=place, ours=None, theirs=None, gap=float('inf'))
  logits_V = _theirs(model, [*ids, *theirs[:place]] if start_id is None else (ids, [start_id, *theirs[:place]]))[-1]
  return dict(place=place, ours=ours[place], theirs=theirs[place], gap=float(logits_V[theirs[place]] - logits_V[ours[place]]))
