"""Two models that write together: every token is drawn from a mixture of their distributions.

Shape suffixes: D width of the first model, V vocabulary.
"""
from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp

from distill_jax.core.types import Head, Model
from distill_jax.losses import distribution, sweep

Array = jax.Array


class Heads(NamedTuple):
  """What stands for a Head: of hidden states side by side, log((1 - share) softmax(first) + share softmax(second)) as logits."""
  first: Head
  second: Head
  width: int
  dtypes: tuple[Any, Any]
  share: float
  hide: Callable[[Array], Array]

  def logits(self, hidden: Array) -> Array:
    """float32 [..., V], normalised: the widest vocabulary, -inf where either model has no token."""
    parts = hidden[..., :self.width], hidden[..., self.width:]
    both = [head.logits(x.astype(dtype)) for head, x, dtype in zip((self.first, self.second), parts, self.dtypes)]
    one, two = (self._log_probs(x) for x in sweep.align(both))
    mixed = jnp.logaddexp(one + jnp.log1p(-self.share), two + jnp.log(self.share))
    return jnp.where(mixed > distribution.FLOOR / 2, mixed, -jnp.inf)

  def _log_probs(self, logits):
    z = distribution.scaled(self.hide(logits))
    return z - distribution.log_sum(z)


def mixed(first: Model, second: Model, *, share: float, hide: Callable[[Array], Array] = lambda logits: logits) -> Model:
  """A Model for sampling: (1 - share) of `first` and `share` of `second`, 0 < share < 1; params {'first', 'second'}.

  Its apply needs a cache. hide: logits -> logits with -inf at ids that must not be drawn.
  """
  def apply(params, batch, *, cache, **keywords):
    one = first.apply(params['first'], batch, cache=cache['first'], **keywords)
    two = second.apply(params['second'], batch, cache=cache['second'], **keywords)
    hidden = jnp.concatenate([one['hidden'].astype(jnp.float32), two['hidden'].astype(jnp.float32)], axis=-1)
    dtypes = one['hidden'].dtype, two['hidden'].dtype
    return {'hidden': hidden, 'head': Heads(one['head'], two['head'], one['hidden'].shape[-1], dtypes, share, hide),
            'cache': {'first': one['cache'], 'second': two['cache']}}

  def cache(rows, length, dtype=None):
    return {'first': first.cache(rows, length, dtype), 'second': second.cache(rows, length, dtype)}

  def ready(params):
    return {'first': first.ready(params['first']), 'second': second.ready(params['second'])}
  return Model(None, apply, (), cache, ready=ready)
