"""The sweep over tokens behind `tokens.means` and `tokens.per_token`: hidden states and heads to values and gradients, chunk by chunk.

Tokens are laid out as [G, N, ...]: G pieces that each lie on one device (of the data axes), N tokens of a piece. In each piece those with a
weight are brought to the front; the sweep runs over chunks [G, C, ...] of all pieces at once and ends where no piece has a weight left.
Nothing crosses devices inside the sweep but, where the vocabulary is sharded, the sums over it.

Shape suffixes: B rows, L tokens of a row, G pieces, N tokens of a piece, C tokens of a chunk, D width, V vocabulary.
"""
import functools
from typing import Any, Callable, Mapping, NamedTuple

import jax
import jax.numpy as jnp

from distill_jax.core import mesh as mesh_lib
from distill_jax.core.types import Head

Array = jax.Array
PIECE = ('batch', 'length')
CHUNK = {'cpu': (256, 2 ** 22), 'other': (1024, 2 ** 25)}     # of tokens: at least so many, and as many as keep so many logits a device


class Out(NamedTuple):
  """The arrays of what `Model.apply` returned."""
  hidden: Array
  weight_DV: Array
  bias_V: Array | None


class What(NamedTuple):
  """What a sweep computes; static. form: for each argument of `function` the (scale, cap) of its head, None for labels. apart: the outs have
  vocabularies of their own, which are not aligned."""
  function: Callable[..., Any]
  form: tuple
  chunk: int | None
  apart: bool = False


class Plan(NamedTuple):
  """The order in which tokens come. order [G, chunks * C]: which token stands at each place; rank [G, N]: its inverse.

  run: how many chunks have a weight. size: C. shape: [B, L].
  """
  order: Array
  rank: Array
  run: Any
  size: int
  chunks: int
  shape: tuple[int, int]


def plan(weights_BL: Array, vocabulary: int, chunk: int | None) -> Plan:
  """Tokens with a weight first, cut into chunks."""
  weights_GN = _lay(weights_BL)
  G, N = weights_GN.shape
  least, logits = CHUNK.get(mesh_lib.platform(), CHUNK['other'])
  size = min(N, chunk or max(least, logits * mesh_lib.pieces('vocab') // vocabulary))
  chunks = -(-N // size)
  size = -(-N // chunks)
  live = weights_GN > 0
  if chunks == 1:
    order = rank = jnp.broadcast_to(jnp.arange(N)[None], (G, N))
    return Plan(order, rank, 1, size, 1, weights_BL.shape)
  order = jnp.argsort(~live, axis=1, stable=True)
  many = jnp.sum(live, axis=1, keepdims=True)
  rank = jnp.where(live, jnp.cumsum(live, axis=1), many + jnp.cumsum(~live, axis=1)) - 1
  order = jnp.pad(order, ((0, 0), (0, chunks * size - N)))
  return Plan(order, rank, jnp.max(-(-many // size)), size, chunks, weights_BL.shape)


def _lay(x_BL: Array) -> Array:
  """[B, L, ...] -> [G, N, ...]."""
  B, L, *rest = x_BL.shape
  b, l = mesh_lib.pieces('batch'), mesh_lib.pieces('length')
  if B % b or L % l:
    b = l = 1
  x = x_BL.reshape(b, B // b, l, L // l, *rest).swapaxes(1, 2).reshape(b * l, B * L // (b * l), *rest)
  return mesh_lib.constrain(x, PIECE, *[None] * (x.ndim - 1))


def _lift(x_GN: Array, shape: tuple[int, int]) -> Array:
  """Inverse of `_lay`."""
  B, L = shape
  rest = x_GN.shape[2:]
  b, l = mesh_lib.pieces('batch'), mesh_lib.pieces('length')
  if x_GN.shape[0] == 1:
    b = l = 1
  x = x_GN.reshape(b, l, B // b, L // l, *rest).swapaxes(1, 2).reshape(B, L, *rest)
  return mesh_lib.constrain(x, 'batch', 'length', *[None] * len(rest))


def _take(x_GN: Array, at_GC: Array) -> Array:
  """x [G, N, ...] at places [G, C] -> [G, C, ...], piece by piece."""
  return jax.vmap(lambda x, at: jnp.take(x, at, axis=0, mode='clip'))(x_GN, at_GC)


def _clean(keep_GC: Array, x_GC: Array) -> Array:
  """Zeros where not `keep`, whatever stood there."""
  return jnp.where(keep_GC.reshape(keep_GC.shape + (1,) * (x_GC.ndim - 2)), x_GC, jnp.zeros((), x_GC.dtype))


class Job(NamedTuple):
  """A sweep laid out. said: hidden states and labels [G, N, ...]; heads: Outs without hidden states, None beside labels."""
  what: What
  plan: Plan
  weights_GN: Array
  said: list
  heads: list


def _lay_out(what: What, said: list, weights_BL: Array) -> Job:
  """The Job of arguments: Outs and labels."""
  # a head is gathered over the data axes here, once, and not in every chunk
  heads = [x._replace(hidden=None, weight_DV=mesh_lib.constrain(x.weight_DV, None, 'vocab')) if isinstance(x, Out) else None for x in said]
  laid = [_lay(x.hidden) if isinstance(x, Out) else jax.tree.map(_lay, x) for x in said]
  widest = max(head.weight_DV.shape[-1] for head in heads if head is not None)
  return Job(what, plan(weights_BL, widest, what.chunk), _lay(weights_BL), laid, heads)


def _chunk(job: Job, i) -> tuple[Array, list]:
  """(weights [G, C], 0 past the end; hidden states and labels [G, C, ...], clean of what stands under weight 0) of chunk i."""
  order, start = job.plan, i * job.plan.size
  if order.chunks == 1:
    weights, pick = job.weights_GN, lambda x: x
  else:
    place = jax.lax.dynamic_slice_in_dim(order.order, start, order.size, axis=1)
    pick = lambda x: _take(x, place)
    weights = jnp.where(start + jnp.arange(order.size)[None] < job.weights_GN.shape[1], pick(job.weights_GN), 0.0)
  return weights, jax.tree.map(lambda x: _clean(weights > 0, pick(x)), job.said)


def _products(job: Job, said: list) -> list:
  """Hidden states [G, C, D] times their heads: float32 [G, C, V]; labels as they are."""
  return [x if head is None else mesh_lib.constrain(Head(head.weight_DV, head.bias_V).product(x), PIECE, None, 'vocab')
          for x, head in zip(said, job.heads)]


def _call(what: What, products: list) -> Any:
  """The function at the logits of these products."""
  values = [x if form is None else Head(None, None, *form).finish(x) for x, form in zip(products, what.form)]
  outs = [i for i, form in enumerate(what.form) if form is not None]
  for i, logits in zip(outs, [] if what.apart else align([values[i] for i in outs])):
    values[i] = logits
  return what.function(*values)


def _run(job: Job, body: Callable, held: Any) -> Any:
  """`body(i, held)` over the chunks that have a weight."""
  return body(0, held) if job.plan.chunks == 1 else jax.lax.fori_loop(0, job.plan.run, body, held)


def _in_order(job: Job, x: Array) -> Array:
  """Values [G, chunks * C, ...] by place -> [B, L, ...] by token."""
  return _lift(x if job.plan.chunks == 1 else _take(x, job.plan.rank), job.plan.shape)


def _nothing(job: Job, number: int) -> Out:
  """Where the gradients of one out are summed: hidden states by place, the head float32, one a piece."""
  hidden, head = job.said[number], job.heads[number]
  (G, _, D), V = hidden.shape, head.weight_DV.shape[-1]
  return Out(
      mesh_lib.constrain(jnp.zeros((G, job.plan.chunks * job.plan.size, D), hidden.dtype), PIECE, None, None),
      mesh_lib.constrain(jnp.zeros((G, D, V), jnp.float32), PIECE, None, 'vocab'),
      None if head.bias_V is None else mesh_lib.constrain(jnp.zeros((G, V), jnp.float32), PIECE, 'vocab'))


def _add(job: Job, number: int, held: Out, hidden_GCD: Array, to_product_GCV: Array, i) -> Out:
  """One chunk's gradient of an out, from that of its product. Matrix products in the dtype of hidden states, sums in float32."""
  head = job.heads[number]
  narrow = to_product_GCV.astype(hidden_GCD.dtype)
  to_hidden = jnp.einsum('gcv,dv->gcd', narrow, head.weight_DV.astype(narrow.dtype), preferred_element_type=jnp.float32)
  to_weight = jnp.einsum('gcd,gcv->gdv', hidden_GCD, narrow, preferred_element_type=jnp.float32)
  return Out(
      jax.lax.dynamic_update_slice_in_dim(held.hidden, to_hidden.astype(held.hidden.dtype), i * job.plan.size, axis=1),
      held.weight_DV + to_weight, None if head.bias_V is None else held.bias_V + jnp.sum(to_product_GCV, axis=1))


def _whole(job: Job, held: Out) -> Out:
  """Gradients by place and piece -> by token, summed."""
  return Out(_in_order(job, held.hidden), jnp.sum(held.weight_DV, axis=0), None if held.bias_V is None else jnp.sum(held.bias_V, axis=0))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def totals(what: What, student: Out, others: list, weights_BL: Array) -> dict[str, Array]:
  """{name: sum of weight times value}. 'loss' has a gradient, to `student`, which is made in the forward sweep. others: Outs and labels."""
  return _sum(what, student, others, weights_BL, learn=False)[0]


def _totals_forward(what, student, others, weights_BL):
  return _sum(what, student, others, weights_BL, learn=True)


def _totals_backward(what, gradient, given):
  if gradient is None:
    return None, None, None
  return jax.tree.map(lambda x: (x.astype(jnp.float32) * given['loss']).astype(x.dtype), gradient), None, None


totals.defvjp(_totals_forward, _totals_backward)


def _sum(what, student, others, weights_BL, *, learn: bool) -> tuple[dict[str, Array], Out | None]:
  """(totals, gradient of the total 'loss' with respect to `student`)."""
  job = _lay_out(what, [student, *others], weights_BL)

  def value(product, told, weights):
    values = _call(what, [product, *told])
    sums = {name: jnp.sum(_clean(weights > 0, x.astype(jnp.float32)) * weights, axis=1) for name, x in values.items()}
    return jnp.sum(sums.get('loss', 0.0)), sums

  def first(i):
    weights, said = _chunk(job, i)
    return weights, said, _products(job, said)

  names = jax.eval_shape(lambda: (lambda weights, said, products: value(products[0], products[1:], weights)[1])(*first(0)))
  learn = learn and 'loss' in names

  def body(i, held):
    weights, said, (product, *told) = first(i)
    if not learn:
      return jax.tree.map(jnp.add, held[0], value(product, told, weights)[1]), None
    to_product, sums = jax.grad(value, has_aux=True)(product, told, weights)
    return jax.tree.map(jnp.add, held[0], sums), _add(job, 0, held[1], said[0], to_product, i)

  held = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), names), _nothing(job, 0) if learn else None
  sums, gradient = _run(job, body, held)
  sums = {name: jnp.sum(x) for name, x in sums.items()}
  if not learn:
    return sums, None
  whole = _whole(job, gradient)
  like = lambda x, parameter: None if x is None else x.astype(parameter.dtype)
  return sums, Out(whole.hidden, like(whole.weight_DV, student.weight_DV), like(whole.bias_V, student.bias_V))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def values(what: What, outs: list, labels: list, weights_BL: Array) -> Any:
  """The function at every token, 0 where the weight is 0. outs, labels: the arguments, each with None at the places of the other."""
  job = _lay_out(what, [label if out is None else out for out, label in zip(outs, labels)], weights_BL)

  def one(i):
    weights, said = _chunk(job, i)
    found = _call(what, _products(job, said))
    return jax.tree.map(lambda x: _clean(weights > 0, x.astype(jnp.float32) if jnp.issubdtype(x.dtype, jnp.inexact) else x), found)

  def body(i, held):
    put = lambda held, x: jax.lax.dynamic_update_slice_in_dim(held, x.astype(held.dtype), i * job.plan.size, axis=1)
    return jax.tree.map(put, held, one(i))

  def empty(x):
    shape = x.shape[0], job.plan.chunks * job.plan.size, *x.shape[2:]
    return mesh_lib.constrain(jnp.zeros(shape, jnp.float32 if x.dtype == bool else x.dtype), PIECE, *[None] * (len(shape) - 1))
  held = jax.tree.map(empty, jax.eval_shape(lambda: one(0)))
  return jax.tree.map(lambda x: _in_order(job, x), _run(job, body, held))


def _values_forward(what, outs, labels, weights_BL):
  return values(what, outs, labels, weights_BL), (outs, labels, weights_BL)


def _values_backward(what, kept, given):
  """The logits again, chunk by chunk, and the gradients of every out."""
  outs, labels, weights_BL = kept
  job = _lay_out(what, [label if out is None else out for out, label in zip(outs, labels)], weights_BL)
  numbers = [n for n, out in enumerate(outs) if out is not None]
  laid, tree = jax.tree.flatten(given)
  laid = [None if x.dtype == jax.dtypes.float0 else _lay(x) for x in laid]
  asked = job._replace(said=[*job.said, laid])

  def body(i, held):
    weights, (*said, wanted) = _chunk(asked, i)
    products = _products(job, said)

    def value(several):
      found = jax.tree.leaves(_call(what, [several[numbers.index(n)] if n in numbers else x for n, x in enumerate(products)]))
      pairs = [(x, ct) for x, ct in zip(found, wanted) if ct is not None]
      return sum(jnp.sum(_clean(weights > 0, x.astype(jnp.float32)) * ct) for x, ct in pairs)
    pulled = jax.grad(value)([products[n] for n in numbers])
    return [_add(job, n, one, said[n], pull, i) for n, one, pull in zip(numbers, held, pulled)]

  gradients = dict(zip(numbers, (_whole(job, x) for x in _run(job, body, [_nothing(job, n) for n in numbers]))))
  like = lambda x, parameter: None if x is None else x.astype(parameter.dtype)
  fit = lambda out, x: Out(x.hidden, like(x.weight_DV, out.weight_DV), like(x.bias_V, out.bias_V))
  return [None if out is None else fit(out, gradients[n]) for n, out in enumerate(outs)], None, None


values.defvjp(_values_forward, _values_backward)


def align(logits: list[Array]) -> list[Array]:
  """Arrays [..., V_i] at the widest V, with -inf on all sides at ids that any side lacks; unchanged where all V_i agree."""
  sizes = [x.shape[-1] for x in logits]
  if len(set(sizes)) <= 1:
    return logits
  return [_widen(x, min(sizes), max(sizes)) for x in logits]


def _widen(logits: Array, known: int, size: int) -> Array:
  pad = [(0, 0)] * (logits.ndim - 1) + [(0, size - logits.shape[-1])]
  logits = jnp.pad(logits, pad, constant_values=-jnp.inf)
  ids = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
  return jnp.where(ids < known, logits, -jnp.inf)
