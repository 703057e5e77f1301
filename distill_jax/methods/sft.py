"""Supervised fine-tuning on text somebody wrote: cross-entropy of the target tokens (CoT fine-tuning when the text is a rationale)."""
import jax.numpy as jnp

from distill_jax.core import keys
from distill_jax.core.mean import Mean
from distill_jax.core.types import Method
from distill_jax.losses import tokens


def sft(roles, *, task=None, text=None) -> Method:
  """L = -(1/N) sum log p(y_t | x, y_<t) over target tokens of weight > 0 (EOS among them), N their total weight in the whole batch.

  roles: 'student'. Metrics: accuracy of the most likely token.
  """
  model = roles['student'].model

  def loss(params, batch, key):
    out = model.apply(params['student'], batch, key_B=row_keys(key, batch))
    means = tokens.means(hard, batch['weights'], out, batch['targets'])
    return {'cross_entropy': means['loss'], **penalty(out)}, {'accuracy': means['accuracy']}, {}

  return Method(loss)


def row_keys(key, batch):
  """One dropout key a row, by the id of the row: the masks do not depend on how the batch is cut. None without a key."""
  return None if key is None else keys.fold_ids(key, batch['row'])


def hard(logits, targets):
  """What one-hot targets say of logits [..., V]: the cross-entropy, and 1.0 where no id is likelier than the target."""
  return {'loss': tokens.cross_entropy(logits, targets), 'accuracy': tokens.correct(logits, targets)}


def penalty(out):
  """The term of a model's own penalty (one value a row), where it has one."""
  if 'penalty' not in out:
    return {}
  return {'penalty': Mean.of(out['penalty'], jnp.ones_like(out['penalty']))}
