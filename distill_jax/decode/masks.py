"""What an encoder says of single tokens at the mask of a prompt."""
import functools
from typing import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from distill_jax.core import hosts, mesh as mesh_lib
from distill_jax.core.types import Role
from distill_jax.decode import batching, sample
from distill_jax.losses import distribution


def of_tokens(role: Role, params, prompts: Sequence[str], texts: Sequence[Sequence[str]], *, batch: int = 64,
              mesh: Mesh | None = None) -> list[list[tuple[float, int]]]:
  """As `likelihood.of_texts`, for a model that fills in masks: (log p of each candidate at the prompt's one mask, 1).

  ValueError: a prompt without exactly one mask, a candidate that is not one token, a prompt longer than the model reads.
  """
  rows, mask = role.text.encode_whole(prompts), role.text.tokenizer.mask_token_id
  places = [np.flatnonzero(np.asarray(ids) == mask) for ids in rows]
  most = (role.model.config or {}).get('max_length')
  for prompt, ids, place in zip(prompts, rows, places):
    if len(place) != 1:
      raise ValueError(f'of_tokens: the prompt {prompt[-60:]!r} has {len(place)} masks; there must be one')
    if most is not None and len(ids) > most:
      raise ValueError(f'of_tokens: a prompt has {len(ids)} tokens, the model reads {most}: take fewer demonstrations')
  wanted = [role.text.encode_many(several) for several in texts]
  for several, ids in zip(texts, wanted):
    for text, one in zip(several, ids):
      if len(one) != 1:
        raise ValueError(f'of_tokens: the candidate {text!r} is {len(one)} tokens; a mask is one')
  params, put = sample._place(role.model, params, mesh)
  widths = batching.halves(-(-max(map(len, rows), default=1) // 16) * 16, batching.SHORTEST)
  pieces = 1 if mesh is None else mesh_lib.row_count(mesh)
  batch = -(-batch // pieces) * pieces
  out: list = [None] * len(rows)
  order = sorted(range(len(rows)), key=lambda i: (batching.fit(len(rows[i]), widths), i))
  for start in range(0, len(order), batch):
    chosen = order[start:start + batch]
    width = batching.fit(max(len(rows[i]) for i in chosen), widths)
    tokens, segments, place = np.zeros((batch, width), np.int32), np.zeros((batch, width), np.int32), np.zeros(batch, np.int32)
    for b, i in enumerate(chosen):
      tokens[b, :len(rows[i])], segments[b, :len(rows[i])], place[b] = rows[i], 1, places[i][0]
    logps = np.asarray(hosts.to_host(_at(sample._static(role.model, mesh), params, *put(tokens, segments, place))))
    for b, i in enumerate(chosen):
      out[i] = [(float(logps[b, one[0]]), 1) for one in wanted[i]]
  return out


@functools.partial(jax.jit, static_argnums=0)
def _at(model, params, tokens_BT, segments_BT, place_B):
  """float32 log p [B, V] at one place of each row."""
  out = model.apply(params, dict(tokens=tokens_BT, segments=segments_BT))
  hidden = jnp.take_along_axis(out['hidden'], place_B[:, None, None], axis=1)[:, 0]
  z = distribution.scaled(out['head'].logits(hidden))
  return z - distribution.log_sum(z)
