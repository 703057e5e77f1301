"""The one exact step: several terms with their own denominators, the same gradient however the batch is cut."""
from typing import Any, Callable, Mapping

import jax
import jax.numpy as jnp
from jax.extend import core as jex
from jax.sharding import Mesh, NamedSharding

from distill_jax.core import hosts, mesh as mesh_lib, tree
from distill_jax.core.mean import Mean
from distill_jax.core.types import Method, Role, State

LABEL_KEY = 0      # labels are functions of the example: their key is fixed, early and late


def init_state(method: Method, roles: Mapping[str, Role], params: Mapping[str, Any], optimizers: Mapping[str, Any]) -> State:
  """The state before the first step. params: by role, all roles of the method; those with an optimiser are trained."""
  trained = {role: params[role] for role in optimizers}
  opt = {role: optimizers[role].transform.init(tree.split(params[role], roles[role].model.trainable)[0]) for role in optimizers}
  return State(jnp.zeros((), jnp.int32), trained, opt, method.memory(params))


def start(method: Method, roles: Mapping[str, Role], params: Mapping[str, Any], optimizers: Mapping[str, Any], mesh: Mesh) -> State:
  """`init_state` on the mesh: moments and copies of weights lie as the weight of the same path and shape does, the rest everywhere.

  Of params that are only shapes (jax.ShapeDtypeStruct with a sharding): the shapes of the state.
  """
  weights = {(path, leaf.shape): leaf.sharding for role in params.values() for path, leaf in tree.flatten(role).items()}
  begin = lambda params: init_state(method, roles, params, optimizers)

  def place(path, shape):
    names = [entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey)]
    for first in range(len(names)):
      like = weights.get(('/'.join(map(str, names[first:])), shape.shape))
      if like is not None:
        return like
    return mesh_lib.replicated(mesh)
  shapes = jax.eval_shape(begin, params)
  where = jax.tree_util.tree_map_with_path(place, shapes)
  if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(params)):
    return jax.tree.map(lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes, where)
  return jax.jit(begin, out_shardings=where)(params)


def compiled(step: Callable, state: State) -> Callable:
  """`step` under jax.jit: the state is donated and stays where it lies.

  Left to the compiler, it may lie elsewhere after the first step; the next steps would then be another program than a resumed run's.
  """
  return jax.jit(step, donate_argnums=0, out_shardings=(jax.tree.map(lambda x: x.sharding, state), None))


def cut(batch: Any, microbatches: int, mesh: Mesh | None = None) -> Any:
  """[B, ...] -> [G, B/G, ...]: microbatch g holds rows g, g+G, ..., so that no row leaves its device."""
  def one(x):
    if x.shape[0] % microbatches:
      raise ValueError(f'{x.shape[0]} rows cannot be cut into {microbatches} microbatches')
    x = x.reshape((x.shape[0] // microbatches, microbatches) + x.shape[1:]).swapaxes(0, 1)
    if mesh is not None:
      x = jax.lax.with_sharding_constraint(x, NamedSharding(mesh, mesh_lib.spec((None, 'batch'))))
    return x
  return jax.tree.map(one, batch)


def join(stats: Any) -> Any:
  """Inverse of `cut`: [G, B/G, ...] -> [B, ...] in the order of the batch."""
  return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape((-1,) + x.shape[2:]), stats)


def depends(function: Callable, used: Any, *rest) -> bool:
  """Whether any output of function(used, *rest) may depend on `used`. Call-like equations count as one: errs towards True."""
  closed = jax.make_jaxpr(function)(used, *rest)
  count = len(jax.tree.leaves(used))
  reached = set(closed.jaxpr.invars[:count])
  for equation in closed.jaxpr.eqns:
    if any(not isinstance(x, jex.Literal) and x in reached for x in equation.invars):
      reached.update(equation.outvars)
  return any(not isinstance(x, jex.Literal) and x in reached for x in closed.jaxpr.outvars)


def make_step(method: Method, roles: Mapping[str, Role], optimizers: Mapping[str, Any], *, microbatches: int = 1,
              mesh: Mesh | None = None, rules: Mapping[str, Any] = mesh_lib.RULES) -> Callable:
  """step(state, frozen, batch, key) -> (state, {name: Mean}), pure; see `compiled`.

  frozen: params of the roles without an optimiser. key: the run's key; the step folds its number in.
  The gradient is that of sum_n total_n / W_n with W_n the weight of term n in the whole batch; a term of weight 0 counts 0.
  Where the loss or the gradient is not finite, params, moments and memory stay as they are and the metric 'skipped' is 1.
  """
  def step(state: State, frozen, batch, key):
    with mesh_lib.on(mesh, rules):
      return whole_step(state, frozen, batch, key)

  def whole_step(state: State, frozen, batch, key):
    key = jax.random.fold_in(key, state.step)
    halves = {role: tree.split(state.params[role], roles[role].model.trainable) for role in optimizers}
    learns, stays = {r: h[0] for r, h in halves.items()}, {r: h[1] for r, h in halves.items()}

    def whole(learned):
      merged = {role: tree.merge(learned[role], stays[role]) for role in learned}
      return {**frozen, **merged, 'memory': state.memory}

    def label(rows):
      return method.label(whole(learns), rows, jax.random.key(LABEL_KEY))

    def labelled(rows):
      return rows if method.label is None or 'label' in rows else {**rows, 'label': label(rows)}

    def weights_of(rows):
      terms = method.loss(whole(learns), rows, key)[0]
      return {name: term.weight for name, term in terms.items()}

    def gradient(rows, weight):
      def objective(learned):
        terms, metrics, stats = method.loss(whole(learned), rows, key)
        share = {n: t.total * jnp.where(weight[n] > 0, 1.0 / jnp.where(weight[n] > 0, weight[n], 1.0), 0.0) for n, t in terms.items()}
        return sum(share.values()), ({**terms, **metrics}, stats)
      return jax.grad(objective, has_aux=True)(learns)

    if microbatches == 1:
      rows = labelled(batch)
      weight = weights_of(rows)
      grads, (means, stats) = gradient(rows, weight)
    else:
      parts = _labelled_first(cut(batch, microbatches, mesh), method, labelled, label, weights_of)
      weight = _sum(lambda rows: weights_of(labelled(rows)), parts)[0]
      def one(rows):
        grads, (means, stats) = gradient(labelled(rows), weight)
        return (grads, means), stats
      (grads, means), stats = _sum(one, parts, aux=True)
      stats = join(stats)

    new, opt, norms = {}, {}, {'loss': Mean(sum(means[name].value for name in weight), jnp.ones(()))}
    for role, optimizer in optimizers.items():
      updates, opt[role] = optimizer.transform.update(grads[role], state.opt[role], learns[role])
      new[role] = tree.merge(_apply(learns[role], updates), stays[role])
      norms[f'grad_norm/{role}'] = Mean(_norm(grads[role]), jnp.ones(()))
      norms[f'lr/{role}'] = Mean(jnp.asarray(optimizer.rate(state.step), jnp.float32), jnp.ones(()))
    sound = jnp.all(jnp.isfinite(jnp.stack([mean.total for name, mean in norms.items() if not name.startswith('lr/')])))
    after = State(state.step + 1, new, opt, state.memory)
    after = after._replace(memory=method.after(after, batch, stats))
    after = jax.tree.map(lambda x, before: jnp.where(sound, x, before), after, state)._replace(step=after.step)
    return after, {**means, **norms, 'skipped': Mean(1.0 - sound, jnp.ones(()))}

  return step


def find_rows(method: Method, roles: Mapping[str, Role], optimizers: Mapping[str, Any], *, mesh: Mesh,
              rules: Mapping[str, Any] = mesh_lib.RULES) -> Callable:
  """find(params, frozen, batch, key) -> a sentence that names the rows whose loss or gradient, taken alone, is not finite."""
  def sound(params, frozen, batch, number, key):
    with mesh_lib.on(mesh, rules):
      rows = jax.tree.map(lambda x: jnp.repeat(jax.lax.dynamic_index_in_dim(x, number), mesh_lib.row_count(mesh), axis=0), batch)
      memory = {'memory': method.memory({**frozen, **params})}
      if method.label is not None and 'label' not in rows:
        rows = {**rows, 'label': method.label({**frozen, **params, **memory}, rows, jax.random.key(LABEL_KEY))}
      halves = {role: tree.split(params[role], roles[role].model.trainable) for role in optimizers}

      def objective(learned):
        merged = {role: tree.merge(learned[role], halves[role][1]) for role in learned}
        return sum(term.value for term in method.loss({**frozen, **merged, **memory}, rows, key)[0].values())
      value, grads = jax.value_and_grad(objective)({role: half[0] for role, half in halves.items()})
      return jnp.isfinite(value) & jnp.isfinite(_norm(grads))
  run = jax.jit(sound)

  def find(params, frozen, batch, key):
    bad = [number for number in range(len(batch['row'])) if not run(params, frozen, batch, number, key)]
    if not bad:
      return 'no row does it alone: the weights, or the sum of all, are the cause'
    names, ids = hosts.to_host(batch['row']), hosts.to_host(batch['examples']) if 'examples' in batch else None
    hexed = lambda pair: ''.join(f'{int(x):08x}' for x in pair)
    said = [f'{hexed(names[n])}' + (f' (examples {", ".join(hexed(e) for e in ids[n] if e.any())})' if ids is not None else '') for n in bad[:8]]
    return f'{len(bad)} of {len(batch["row"])} rows do it: {"; ".join(said)}{" ..." if len(bad) > 8 else ""}'
  return find


def _labelled_first(parts, method, labelled, label, weights_of):
  """Labels computed once in a scan and kept, where the weights of the loss need them; otherwise they are left to each microbatch."""
  if method.label is None or 'label' in parts:
    return parts
  first = jax.tree.map(lambda x: x[0], parts)
  shapes = jax.eval_shape(label, first)
  if not depends(lambda labels, rows: weights_of({**rows, 'label': labels}), shapes, first):
    return parts
  return {**parts, 'label': jax.lax.map(label, parts)}


def _sum(function, parts, aux=False):
  """Sum over the leading axis of `parts` of function(part) by a scan; with aux, function returns (summed, stacked)."""
  split = function if aux else lambda part: (function(part), ())
  zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(split, jax.tree.map(lambda x: x[0], parts))[0])
  def body(total, part):
    more, stacked = split(part)
    return jax.tree.map(jnp.add, total, more), stacked
  return jax.lax.scan(body, zero, parts)


def _apply(params, updates):
  return jax.tree.map(lambda p, u: (p + u).astype(p.dtype), params, updates)


def _norm(grads):
  return jnp.sqrt(sum(jnp.sum(jnp.square(g.astype(jnp.float32))) for g in jax.tree.leaves(grads)))
