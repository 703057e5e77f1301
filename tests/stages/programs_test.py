"""What is planned is what runs: shapes, dtypes and layouts of the programs against those of real stages."""
import jax
import numpy as np
import pytest

from distill_jax.core import keys, mesh as mesh_lib, tree
from distill_jax.core.types import Role
from distill_jax.decode import batching, sample
from distill_jax.models import published
from distill_jax.stages import programs, roles as roles_lib
from distill_jax.stages.train import make_run

OPTIM = dict(lr=1e-3, warmup=2, decay='cosine')
METHOD = dict(method='logit_kd', alpha=0.5, k=4)


def recipe(**how):
  """A small recipe over the bundled checkpoints. how: of all stages."""
  return dict(
      roles=dict(teacher=dict(load='bundled:teacher'), base=dict(load='bundled:student', overrides=dict(remat='full')),
                 distilled=dict(stage='distill', role='student')),
      how=how,
      stages=dict(
          generate=dict(stage='generate', roles=dict(teacher='teacher'), task='t', samples=2, max_new_tokens=32, how=dict(batch=16)),
          grade=dict(stage='grade', of=['generate'], task='t'),
          label=dict(stage='label', of=['grade'], roles=dict(student='base', teacher='teacher'), method=METHOD, length=64, how=dict(batch=8)),
          distill=dict(stage='train', of=['label'], roles=dict(student='base'), method=METHOD, steps=10, batch=16, length=64, optim=OPTIM),
          evaluate=dict(stage='evaluate', roles=dict(student='distilled'), task='t', max_new_tokens=32, how=dict(batch=16))),
      run=['generate', 'grade', 'label', 'distill', 'evaluate'])


def seen(x):
  """What of arrays and shapes must agree."""
  return jax.tree.map(lambda a: (a.shape, str(a.dtype), a.sharding.shard_shape(a.shape)), x)


@pytest.mark.parametrize('sizes', [dict(data=8), dict(data=2, fsdp=4)], ids=str)
def test_the_state_of_a_train_stage_lies_as_planned(sizes):
  made = recipe(mesh=sizes)
  (program,) = programs.programs_of(made, 'distill', jax.devices())
  mesh = mesh_lib.make_mesh(sizes)
  real = roles_lib.load_roles(dict(student=made['roles']['base']), mesh, {})
  run = make_run(real, {'student': real['student'].params}, method=METHOD, optim={'student': OPTIM}, steps=10, batch=16, microbatches=1, mesh=mesh,
                 rules=mesh_lib.RULES)
  assert seen(program.arguments[0]) == seen(run.state)
  on_one = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves((run.state.params, run.state.opt)))
  assert programs.bytes_of((program.parts['params'], program.parts['optimiser'])) == on_one


def test_stages_whose_step_is_the_same_function_share_it():
  """Traced and compiled once; whatever the step depends on makes another one."""
  made = recipe(mesh=dict(data=8))
  mesh = mesh_lib.make_mesh(dict(data=8))
  real = roles_lib.load_roles(dict(student=made['roles']['base']), mesh, {})
  known = dict(method=METHOD, optim={'student': OPTIM}, steps=10, batch=16, microbatches=1, mesh=mesh, rules=mesh_lib.RULES)
  step = lambda **more: make_run(real, {'student': real['student'].params}, **{**known, **more}).run
  first = step()
  assert step() is first
  for more in (dict(optim={'student': {**OPTIM, 'lr': 0.5}}), dict(steps=11), dict(microbatches=2), dict(method={**METHOD, 'alpha': 0.25}), dict(asked='a task'),
               dict(task=object()), dict(mesh=mesh_lib.make_mesh(dict(data=4, fsdp=2)))):
    assert step(**more) is not first, more
  other = {'student': real['student']._replace(fingerprint='other')}
  assert make_run(other, {'student': real['student'].params}, **known).run is not first


def test_a_planned_train_step_runs():
  """Compiled from shapes alone, it takes real arrays."""
  made = recipe(mesh=dict(fsdp=8), microbatches=2)
  (program,) = programs.programs_of(made, 'distill', jax.devices())
  compiled = program.function.lower(*program.arguments).compile()
  real = jax.tree.map(lambda x: jax.device_put(np.zeros(x.shape, x.dtype) if x.dtype != jax.random.key(0).dtype else jax.random.key(0), x.sharding),
                      program.arguments)
  state, means = compiled(*real)
  assert int(state.step) == 1 and float(means['distillation'].weight) == 0


@pytest.mark.parametrize('stage, sizes', [('generate', dict(data=8)), ('evaluate', dict(data=4, fsdp=2)),
                                          pytest.param('generate', dict(data=1), marks=pytest.mark.slow)], ids=str)
def test_sampling_calls_what_is_planned(stage, sizes, monkeypatch):
  made = recipe(mesh=sizes)
  devices = jax.devices()[:int(np.prod(list(sizes.values())))]
  read, write = programs.programs_of(made, stage, devices, prompt=32)
  mesh = mesh_lib.make_mesh(sizes, devices=devices)
  definition = programs.definition_of(made, next(iter(made['stages'][stage]['roles'].values())))
  role = roles_lib.load_role(definition, mesh=mesh)
  shapes = lambda args: [(x.shape, str(x.dtype)) for x in jax.tree.leaves(args)]
  calls = dict(_read=[], _advance=[])
  for name, static in (('_read', 4), ('_advance', 3)):
    def call(*args, name=name, static=static, true=getattr(batching, name)):
      calls[name].append(shapes(args[static:]))
      return true(*args)
    monkeypatch.setattr(batching, name, call)
  count, kind = 40, made['stages'][stage]
  prompts = [f'{"word " * (i % 9)}{i}?' for i in range(count)]
  sample.write(role, role.params, prompts, [keys.content_id(p) for p in prompts], jax.random.key(0), max_new_tokens=32, length=33, mesh=mesh,
               samples=kind.get('samples', 1), temperature=0.7 if stage == 'generate' else 0.0, batch=16)
  assert shapes(write.arguments[3:]) in calls['_advance']
  assert shapes(read.arguments[4:]) in calls['_read']


def test_labels_are_planned_as_declared():
  label, = programs.programs_of(recipe(), 'label', jax.devices())
  said = jax.eval_shape(label.function, *label.arguments)
  assert {name: x.shape for name, x in said.items()} == dict(top_ids=(8, 64, 4), top_logps=(8, 64, 4))
  train, = programs.programs_of(recipe(), 'distill', jax.devices())
  assert {name: x.shape for name, x in train.arguments[2]['label'].items()} == dict(top_ids=(16, 64, 4), top_logps=(16, 64, 4))


def test_stages_without_programs_have_none():
  assert programs.programs_of(recipe(), 'grade', jax.devices()) == []


def test_what_a_stage_refuses_is_refused_with_its_own_words():
  with pytest.raises(ValueError, match='batch=8 cannot be cut'):
    programs.programs_of(recipe(mesh=dict(data=3)), 'label', jax.devices()[:3])
  with pytest.raises(ValueError, match='not divisible'):
    programs.programs_of(recipe(mesh=dict(fsdp=5)), 'distill', jax.devices()[:5])
  with pytest.raises(ValueError, match='must divide|needs 3 devices'):
    programs.programs_of(recipe(mesh=dict(fsdp=3)), 'distill', jax.devices())


def test_a_role_that_a_stage_trains_has_the_shape_it_starts_from():
  assert programs.definition_of(recipe(), 'distilled') == dict(load='bundled:student', overrides=dict(remat='full'))
  assert programs.shape_of(programs.definition_of(recipe(), 'distilled'))[1]['remat'] == 'full'


@pytest.mark.parametrize('repository, count', [   # parameters as the model cards say, tied ones once
    ('Qwen/Qwen2.5-0.5B', 0.49e9), ('Qwen/Qwen2.5-1.5B', 1.54e9), ('Qwen/Qwen2.5-3B', 3.09e9), ('Qwen/Qwen2.5-7B', 7.61e9),
    ('openai-community/gpt2', 124e6), ('openai-community/gpt2-medium', 355e6), ('openai-community/gpt2-large', 774e6),
    ('TinyLlama/TinyLlama-1.1B-Chat-v1.0', 1.1e9)])
def test_published_shapes_have_the_published_size(repository, count, monkeypatch):
  monkeypatch.setenv('HF_HUB_OFFLINE', '1')
  name, config, _ = programs.shape_of(dict(load=repository))
  from distill_jax.models import MODELS
  shapes = jax.eval_shape(MODELS[name](**config).init, jax.random.key(0))
  assert sum(x.size for x in jax.tree.leaves(shapes)) == pytest.approx(count, rel=0.011)


def test_the_table_says_where_it_comes_from(monkeypatch):
  assert 'as published' in programs.shape_of(dict(load='Qwen/Qwen2.5-0.5B'))[2]
  with pytest.raises(ValueError, match='not in the table of .*Qwen2.5-7B-Instruct.*config.json'):
    programs.shape_of(dict(load='nobody/nothing'))
  assert set(published.SHAPES) >= {'Qwen/Qwen2.5-7B-Instruct'}


def test_roles_are_rolled_out_in_the_type_they_are_kept_in():
  made = recipe()
  made['roles']['teacher'] |= dict(params_dtype='bfloat16')
  label, = programs.programs_of(made, 'label', jax.devices())
  assert {str(x.dtype) for x in jax.tree.leaves(label.parts['params'])} == {'bfloat16'}
  assert isinstance(label.roles['teacher'][0], Role) and tree.flatten(label.parts['params'])
