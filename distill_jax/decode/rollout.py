"""Rollouts: rows whose completions a model writes anew, from the prompts that stand in them. Pure functions, for use inside a jit.

Shape suffixes: B rows, L tokens of a row, T new tokens, E examples of a row (here 1).
"""
from typing import Any, Mapping

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from distill_jax.core import keys
from distill_jax.core.mean import Mean
from distill_jax.core.types import Model
from distill_jax.decode import sample

Array = jax.Array
WHO, WHAT = 0x77686F, 0x776861      # tell the draw of rows and the draw of tokens from each other and from dropout, whose keys are by row too


def check(batch: Mapping[str, Any], text, *, method: str) -> None:
  """ValueError unless every row of the batch is one example, and the tokenizer says how a text ends."""
  if batch['examples'].shape[1] > 1:
    raise ValueError(f'{method}: rollouts continue one prompt a row, but rows here hold up to {batch["examples"].shape[1]} packed examples: '
                     'set pack=False in the train stage (or on_policy=0, where the method has it)')
  if text is None or text.eos_id is None:
    raise ValueError(f'{method}: rollouts end at the end-of-text token, and the student\'s tokenizer has none: give it one (eos_token in '
                     'tokenizer_config.json)')


def drawn(batch: Mapping[str, Any], key: Array, *, share: float) -> Array:
  """bool [B], True for about `share` of the rows: a draw by key and row id, so that neighbours and order do not matter."""
  each = keys.fold_ids(jax.random.fold_in(key, WHO), batch['row'])
  return jax.vmap(jax.random.uniform)(each) < share


def write(model: Model, params, batch: Mapping[str, Any], where_B: Array, key: Array, *, text, max_new_tokens: int, temperature: float = 1.0,
          top_p: float = 1.0, top_k: int = 0, mesh: Mesh | None = None) -> tuple[dict[str, Any], Array]:
  """(the batch with completions by `model` in the rows of `where`, their log-probabilities float32 [B, L] at the targets).

  The prompt of a row is what stands before its first weighted target; rows without one, and those not in `where`, stay as they are. A
  completion ends with EOS, which is a target like the others, or is cut after `max_new_tokens` or where the row ends. Its targets weigh
  1. Keys 'wrote' and 'ended' say by row whether it was written and whether it ended. Labels, which are of other tokens, are dropped.
  The log-probabilities are those of `model` at temperature 1, 0 elsewhere.
  """
  if model.start_id is not None:
    raise ValueError('rollouts continue the prompt in the tokens of a row; this student reads its prompt with an encoder: take sft or logit_kd')
  tokens_BL, targets_BL, weights_BL = batch['tokens'], batch['targets'], batch['weights']
  B, L = tokens_BL.shape
  where_B = where_B & jnp.any(weights_BL > 0, axis=1)
  asked_B = jnp.argmax(weights_BL > 0, axis=1).astype(jnp.int32) + 1      # tokens of the prompt
  place_L = jnp.arange(L, dtype=jnp.int32)[None]
  from_BL = place_L - (L - asked_B[:, None])                              # left padded: the prompt ends in the last column
  prompts_BL = jnp.take_along_axis(tokens_BL, jnp.maximum(from_BL, 0), axis=1)
  segments_BL = ((from_BL >= 0) & where_B[:, None]).astype(jnp.int32)
  out = sample.sample(
      sample._on(model, mesh), params, prompts_BL, segments_BL, batch['row'], jax.random.fold_in(key, WHAT), max_new_tokens=max_new_tokens,
      temperature=temperature, top_p=top_p, top_k=top_k, eos_id=text.eos_id, pad_id=text.pad_id, allowed=text.vocab_size, mesh=mesh)
  written_BT, logps_BT = out.tokens_BNT[:, 0], out.logps_BNT[:, 0]
  count_B = jnp.minimum(out.lengths_BN[:, 0], L - asked_B + 1)            # the last target is no input
  last_B = jnp.take_along_axis(written_BT, jnp.maximum(count_B - 1, 0)[:, None], axis=1)[:, 0]
  at = lambda x_BT, nth_BL: jnp.take_along_axis(x_BT, jnp.clip(nth_BL, 0, max_new_tokens - 1), axis=1)
  nth_BL = place_L - asked_B[:, None] + 1                                 # which token of the completion is the target here
  new_BL = (nth_BL >= 0) & (nth_BL < count_B[:, None])
  real_BL = place_L < (asked_B + count_B - 1)[:, None]
  rows = dict(
      tokens=jnp.where(nth_BL > 0, at(written_BT, nth_BL - 1), tokens_BL), targets=jnp.where(new_BL, at(written_BT, nth_BL), targets_BL),
      weights=new_BL.astype(jnp.float32), segments=real_BL.astype(jnp.int32), positions=jnp.where(real_BL, place_L, 0))
  kept = {name: value for name, value in batch.items() if name != 'label'}
  rows = {name: jnp.where(where_B[:, None], value.astype(batch[name].dtype), batch[name]) for name, value in rows.items()}
  ended_B = where_B & (last_B == text.eos_id)
  told = dict(wrote=where_B[:, None].astype(jnp.float32), ended=ended_B[:, None].astype(jnp.float32))
  return {**kept, **rows, **told}, jnp.where(new_BL & where_B[:, None], at(logps_BT, nth_BL), 0.0)


def counts(batch: Mapping[str, Any]) -> dict[str, Mean]:
  """Metrics of what `write` left: the share of rows it wrote, of these the share that ended by EOS, and their targets on average."""
  if 'wrote' not in batch:
    return {}
  wrote = batch['wrote']
  targets = jnp.sum(batch['weights'] > 0, axis=1, keepdims=True).astype(jnp.float32)
  return {'on_policy': Mean.of(wrote, jnp.ones_like(wrote)), 'finished': Mean.of(batch['ended'], wrote), 'written_tokens': Mean.of(targets, wrote)}
