"""The ten laws of the one step, over every method and over two more that live in the tests only.

Tiny GPT-2 and Llama shapes, packed rows, dropout 0.1, float32 and bfloat16, 8 CPU devices.
"""
import functools

import examples
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import (BOUND, CASES, DENSE, FIRST, HALF, ICL, KEY, LORA, MINILLM, RETRIEVE, T5, ULD, Case, Outcome, assert_near, assert_same, inputs, labels_of, made,
                   mesh_of, over, plain, plain_of, program_of, reference, remembering, run)

from distill_jax.core import mesh as mesh_lib, tree
from distill_jax.data import feed, rows as rows_lib
from distill_jax.methods import METHODS
from distill_jax.train import loop, optim, step as step_lib
from distill_jax.train.checkpoint import Checkpoints
from distill_jax.train.log import Log


def test_every_method_has_an_example():
  missing = set(METHODS) - set(examples.EXAMPLES)
  assert not missing, f'tests/examples.py has no example of {sorted(missing)}'
  untried = set(examples.EXAMPLES) - {case.name for case in CASES}
  assert not untried, f'no case of {sorted(untried)} here'
  for case in CASES:
    assert (made(case).batch['weights'] > 0).any(-1).all() and len(made(case).batch['row']) == examples.ROWS


@pytest.mark.parametrize('case, microbatches', [
    *(pytest.param(case, 4, marks=[pytest.mark.slow] * (case not in (FIRST[2], FIRST[3]))) for case in FIRST if case != LORA),
    *(pytest.param(case, 2, marks=pytest.mark.slow) for case in (FIRST[0], FIRST[3]))], ids=str)
def test_1_cut(case, microbatches):
  """Microbatches change nothing: gradients, terms, metrics, and the order of what is remembered. (Two microbatches: the next law.)"""
  assert_near(reference(case), run(case, microbatches), BOUND[case.dtype])


@over(CASES, slow=[LORA, DENSE, T5, RETRIEVE, *HALF])
def test_2_share(case):
  """Devices change nothing; here with two microbatches on each of them."""
  assert_near(reference(case), run(case, 2, 8), BOUND[case.dtype])


@over([case for case in FIRST if case != LORA], slow=[DENSE])
def test_2_share_moves_no_rows(case):
  """No row leaves its device on the way to its microbatch."""
  text = program_of(case, 2, 8).as_text()
  assert 'all-reduce' in text
  assert 'all-to-all' not in text
  # what is gathered, if anything, is what `after` puts into a queue
  assert case.name == 'contrast' or 'collective-permute' not in text and 'all-gather' not in text


def test_2_share_of_one_row():
  """A contrast over a whole batch is one row; it is cut along its members."""
  case = FIRST[3]
  batch = examples.grouped_batch(jax.random.key(9), rows=1, members=16)
  state, frozen, _, key = inputs(case, 8)
  along = jax.sharding.NamedSharding(mesh_of(8), mesh_lib.spec((None, 'group')))
  spread = {name: jax.device_put(x, mesh_lib.replicated(mesh_of(8)) if name == 'row' else along) for name, x in batch.items()}
  assert {shard.data.shape for shard in spread['tokens'].addressable_shards} == {(1, 2, 8)}
  optimizers = {'student': examples.recorder()}
  step = jax.jit(step_lib.make_step(made(case).method, made(case).roles, optimizers))
  state, means = step(state, frozen, spread, key)
  together = Outcome(*jax.device_get((state.opt, state.params, means, state.memory)))
  state, means = step(*inputs(case, 1, batch))
  assert_near(Outcome(*jax.device_get((state.opt, state.params, means, state.memory))), together, BOUND['float32'])


LABELLED = [case for case in (*FIRST, *HALF, Case('logit_kd', 'llama', 'bfloat16')) if case.name in ('logit_kd', 'reinforce', 'gkd', 'uld', 'minillm', 'icl')]
LIKE_OTHERS = [DENSE, LORA, ULD, MINILLM, T5, *HALF]


@over(LABELLED, slow=LIKE_OTHERS)
def test_3_early_is_late(case):
  """Labels that come with the batch give what labels made inside the step give."""
  batch = made(case).batch
  early = run(case, batch={**batch, 'label': labels_of(case)(batch)})
  # float32 labels round-trip; fused into the step, the compiler may round them elsewhere
  assert_near(reference(case), early, 2e-6 if case.dtype == 'float32' else BOUND[case.dtype])


@over([case for case in FIRST if case.name == 'logit_kd' and case != LORA], slow=[DENSE, T5])
def test_3_early_example_by_example(case):
  """Labels made example by example, unpacked, and packed by the feed afterwards."""
  one = made(case)
  sources = sources_of(one)
  apart = rows_lib.unpacked(one.plain, length=examples.LENGTH, source_length=sources)
  place = {members[0]: n for n, members in enumerate(apart.bins)}
  said = tree.flatten(labels_of(case)(apart.batch([place[i] for i in range(len(one.plain))])))
  labelled = [{**e, **{f'label/{name}': values[i, :len(e['tokens'])] for name, values in said.items()}} for i, e in enumerate(one.plain)]
  packed = rows_lib.packed(labelled, length=examples.LENGTH, most=3, source_length=sources)
  batch = packed.batch(range(examples.ROWS))
  assert len(packed) == examples.ROWS
  late = run(case, batch={name: value for name, value in batch.items() if name != 'label'})
  assert_near(late, run(case, batch=batch), BOUND['float32'])


def sources_of(one):
  """Tokens of a row that an encoder reads; None for decoders."""
  return examples.SOURCE if 'source' in one.batch else None


def soiled(batch, *, seed=0):
  """The batch with garbage wherever it may stand: tokens of no segment, targets and float labels under weight 0."""
  rng = np.random.default_rng(seed)
  junk = lambda x: rng.choice(np.asarray([-2 ** 31, -7, 99999, 2 ** 31 - 1], np.int32), x.shape)
  padding, free = batch['segments'] == 0, batch['weights'] == 0
  out = {**batch, 'tokens': np.where(padding, junk(batch['tokens']), batch['tokens'])}
  if 'source' in batch:
    out['source'] = np.where(batch['source_segments'] == 0, junk(batch['source']), batch['source'])
  if 'targets' not in batch:      # members of weight 0 are absent altogether
    if 'contexts' in batch:
      unread = (batch['contexts_segments'] == 0) | free[..., None, None, None]
      out['contexts'] = np.where(unread, junk(batch['contexts']), batch['contexts'])
    return {**out, 'tokens': np.where(free[..., None], junk(batch['tokens']), out['tokens'])}
  out['targets'] = np.where(free, junk(batch['targets']), batch['targets'])
  wide = lambda keep, x: keep.reshape(keep.shape + (1,) * (x.ndim - keep.ndim))
  dirty = lambda x: np.where(wide(free, x), np.asarray(np.nan, x.dtype) if x.dtype.kind not in 'iu' else junk(x), x)
  return out if 'label' not in batch else {**out, 'label': jax.tree.map(dirty, batch['label'])}


@over(CASES)
def test_4_padding(case):
  """What stands under weight 0 changes nothing, not a bit, NaN included."""
  assert made(case).batch['weights'].min() == 0 and made(case).batch['segments'].min() == 0
  assert_same(reference(case), run(case, batch=soiled(made(case).batch)))


@over(LABELLED, slow=LIKE_OTHERS)
def test_4_padding_of_labels(case):
  batch = {**made(case).batch, 'label': labels_of(case)(made(case).batch)}
  assert_same(run(case, batch=batch), run(case, batch=soiled(batch)))


@over(FIRST)
def test_5_frozen(case):
  """Only trained roles have gradients, and the params of the others stay the caller's."""
  one, outcome = made(case), reference(case)
  assert set(outcome.grads) == set(outcome.params) == set(one.trained)
  for role in one.trained:
    moved = {path: np.abs(x - tree.flatten(one.params[role])[path]).max() for path, x in tree.flatten(outcome.params[role]).items()}
    still = [path for path, size in moved.items() if size == 0]
    learns = tree.flatten(outcome.grads[role])
    assert set(learns) == {path for path in moved if tree.matches(path, one.roles[role].model.trainable)}
    assert not [path for path in moved if path not in learns and path not in still], 'what is frozen stays'
    # a constant added to all keys of a query changes no attention
    assert all(path.endswith('attention/k/bias') for path in still if path in learns), still


ITSELF = Case('logit_kd', 'llama', 'float32', (('alpha', 1.0),))


@over([ITSELF, Case('logit_kd', 'gpt2', 'float32', (('alpha', 1.0), ('k', 4))),
       Case('gkd', 'llama', 'float32', (('on_policy', 0.0),))], slow=[ITSELF])
def test_5_distance_to_itself(case):
  """A teacher that is the student: distance 0, gradient 0."""
  one = made(case)
  other = plain_of(case)(one.params, one.batch)[0]['student']
  grads, means = plain_of(case)({name: one.params['student'] for name in one.params}, one.batch)
  largest = lambda grads: max(float(jnp.abs(x).max()) for x in jax.tree.leaves(grads))
  assert abs(float(means['divergence'].value)) < 1e-7
  assert largest(grads['student']) < 1e-6 * largest(other)


def adam(case):
  return {name: optim.optimizer(lr=1e-2, steps=10, warmup=3, decay='cosine', weight_decay=0.1) for name in made(case).trained}


@functools.lru_cache(maxsize=None)
def adam_step(case, mesh):
  one = made(case)
  state = step_lib.start(one.method, one.roles, jax.device_put(one.params, mesh_lib.replicated(mesh)), adam(case), mesh)
  step = step_lib.make_step(one.method, one.roles, adam(case), microbatches=2, mesh=mesh)
  return step_lib.compiled(step, state)


def training(case, directory, *, steps, mesh):
  """The real loop, feed and checkpoints up to `steps`, from whatever the directory holds."""
  one = made(case)
  params = jax.device_put(one.params, mesh_lib.replicated(mesh))
  state = step_lib.start(one.method, one.roles, params, adam(case), mesh)
  saved = Checkpoints(directory)
  start, state, facts = saved.restore(state) or (0, state, {})
  frozen = {name: value for name, value in params.items() if name not in one.trained}
  open_feed = lambda first: feed.Feed(examples.Fixed(one.batch), batch=8, seed=4, start=first, stop=steps, mesh=mesh)
  try:
    ran = loop.fit(adam_step(case, mesh), state, frozen, open_feed, method=one.method, key=jax.random.key(KEY), start=start, steps=steps,
                   facts=facts, log=Log(), every=5, saving=loop.Saving(saved, 5), skips=loop.Skips(0, str))
  finally:
    saved.close()
  return jax.device_get(ran.state)


@over([case for case in FIRST if case not in (DENSE, ULD, MINILLM)], slow=[FIRST[0], FIRST[2], FIRST[3], FIRST[4], LORA, T5, ICL, RETRIEVE])      # as logit_kd, gkd
def test_6_resume(case, tmp_path):
  """Ten steps are five, a checkpoint, a new process's eyes, and five more: bit for bit, memory and moments too."""
  mesh = mesh_of(2)
  straight = training(case, tmp_path / 'straight', steps=10, mesh=mesh)
  training(case, tmp_path / 'halves', steps=5, mesh=mesh)
  resumed = training(case, tmp_path / 'halves', steps=10, mesh=mesh)
  assert int(straight.step) == int(resumed.step) == 10
  assert_same(straight, resumed)
  assert adam_step(case, mesh)._cache_size() == 1
  start = tree.split(made(case).params['student'], made(case).roles['student'].model.trainable)[0]
  moved = max(np.abs(x - tree.flatten(straight.params['student'])[path]).max() for path, x in tree.flatten(start).items())
  assert moved > 1e-2


def punished(case):
  """The case's method with a student that has a penalty, one value a row."""
  one = made(case)

  def apply(params, batch, **keywords):
    out = one.roles['student'].model.apply(params, batch, **keywords)
    real = (batch['segments'] > 0)[..., None]
    return {**out, 'penalty': jnp.sum(jnp.where(real, jnp.square(out['hidden']), 0.0), (1, 2))}
  student = one.roles['student']
  roles = {**one.roles, 'student': student._replace(model=student.model._replace(apply=apply))}
  factory = {**METHODS, 'contrast': examples.contrast, 'reinforce': examples.reinforce}[case.name]
  return factory(roles, **dict(case.keywords))


@over(FIRST)
def test_7_penalty(case):
  """What a model calls its penalty is a term, and the term moves with the student."""
  def term(method):
    def penalty(student, batch):
      params = {**remembering(case), 'student': student}
      if method.label is not None:
        batch = {**batch, 'label': method.label(params, batch, None)}
      return {name: mean.total for name, mean in method.loss(params, batch, None)[0].items() if name == 'penalty'}
    return penalty
  student, batch = made(case).params['student'], made(case).batch
  assert not jax.eval_shape(term(made(case).method), student, batch)
  assert step_lib.depends(term(punished(case)), student, batch)


def test_7_penalty_moves_the_objective():
  case = FIRST[0]
  grads, means = plain_of(case)(remembering(case), made(case).batch)
  more, strict = plain(made(case), punished(case))(remembering(case), made(case).batch)
  assert set(strict) - set(means) == {'penalty'} and float(strict['penalty'].value) > 0.1
  move = max(float(jnp.abs(a - b).max()) for a, b in zip(jax.tree.leaves(grads['student']), jax.tree.leaves(more['student'])))
  assert move > 1e-2


@over(CASES)
def test_8_order(case):
  """The order of rows is noise (what is remembered follows it, so memory is not compared)."""
  order = np.random.default_rng(1).permutation(examples.ROWS)
  assert_near(reference(case), run(case, batch=jax.tree.map(lambda x: x[order], made(case).batch)), BOUND[case.dtype], memory=False)


@over([FIRST[0], DENSE, HALF[0], FIRST[4], T5, ICL], slow=[DENSE, HALF[0], FIRST[4], ICL])
def test_9_packed_is_unpacked(case):
  """Neighbours in a row do not see each other."""
  one = made(case)
  apart = rows_lib.unpacked(one.plain, length=examples.LENGTH // 2, source_length=sources_of(one) and examples.SOURCE // 3)
  assert len(apart) > 1.5 * examples.ROWS
  together, alone = (jax.device_get(plain_of(case)(remembering(case), batch)) for batch in (one.batch, apart.batch(range(len(apart)))))
  assert_near(Outcome(together[0], None, together[1], {}), Outcome(alone[0], None, alone[1], {}), BOUND[case.dtype])


@over(FIRST)
def test_10_no_trained_leaf_reaches_a_weight(case):
  one = made(case)
  frozen = {name: value for name, value in remembering(case).items() if name not in one.trained}

  def means(learned, batch):
    params = {**frozen, **learned}
    if one.method.label is not None:
      batch = {**batch, 'label': one.method.label(params, batch, jax.random.key(0))}
    return one.method.loss(params, batch, jax.random.key(1))[0]
  learned = {name: one.params[name] for name in one.trained}
  assert not step_lib.depends(lambda *given: {n: mean.weight for n, mean in means(*given).items()}, learned, one.batch)
  assert step_lib.depends(lambda *given: {n: mean.total for n, mean in means(*given).items()}, learned, one.batch), 'it looks at nothing'
