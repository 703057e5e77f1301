"""Rows of an encoder that fills in masks: the mask of an episode's query, or some of the tokens of a plain text (BERT, arXiv:1810.04805)."""
from typing import Any, Mapping

import numpy as np

MASKED, OTHER = 0.8, 0.1      # of the tokens that are asked for: shown as the mask, as a random token; the rest as they are


def row(text, prompt: str, completion: str, example: Mapping[str, Any], *, rate: float, allowed: np.ndarray | None) -> dict[str, np.ndarray]:
  """The keys tokens, targets, weights, plain of an example; targets stand where they are asked for, nothing is shifted.

  Of an episode: the prompt with the tokenizer's mask where the label belongs, which must be one token (of `allowed`). Of a plain text:
  `rate` of its tokens, chosen by the example's id, the same in every epoch; texts that stand several times have other masks each time.
  ValueError: a prompt without exactly one mask, a label of several tokens, a tokenizer without a mask.
  """
  mask = getattr(text.tokenizer, 'mask_token_id', None)
  if mask is None:
    raise ValueError("icl: an encoder needs a tokenizer with a mask token: take one with mask_token, or train it with tokenizer=dict(bpe=size, mask=True)")
  if prompt:
    tokens, label = np.asarray(text.encode_whole([prompt])[0], np.int32), text.encode(completion)
    found = np.flatnonzero(tokens == mask)
    if len(found) != 1:
      raise ValueError(f'icl: the prompt {prompt[-60:]!r} has {len(found)} masks ({text.tokenizer.mask_token}); an encoder fills in exactly one: use form="cloze"')
    if len(label) != 1 or allowed is not None and label[0] not in allowed:
      raise ValueError(f'icl: the label {completion!r} is {len(label)} tokens; a mask is one token' + (' of the candidate set' if len(label) == 1 else ''))
    asked, shown = found, tokens
    targets = np.zeros(len(tokens), np.int32)
    targets[found] = label
  else:
    targets = np.asarray(text.encode_whole([completion])[0], np.int32)
    rng = np.random.default_rng([int(x) for x in example['id']])
    asked = np.sort(rng.choice(len(targets), max(round(rate * len(targets)), 1), replace=False))
    way = rng.random(len(asked))
    shown = targets.copy()
    shown[asked] = np.where(way < MASKED, mask, np.where(way < MASKED + OTHER, rng.integers(0, text.vocab_size, len(asked)), targets[asked]))
  weights = np.zeros(len(shown), np.float32)
  weights[asked] = 1.0
  return dict(tokens=shown, targets=targets, weights=weights, plain=np.full(len(shown), not prompt, np.int32))
