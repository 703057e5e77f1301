"""Students cut out of their teachers: the same bits where all is kept, the layers that a person would pick, shapes that fit together."""
import jax
import numpy as np
import pytest

from distill_jax.core import mesh as mesh_lib, tree
from distill_jax.models import MODELS, weights
from distill_jax.stages import checks, proof, roles, students

SHAPES = dict(
    llama=dict(heads=4, kv_heads=2, attention_bias='qkv', tied=False),
    gpt2=dict(heads=4, norm='layer', positions='learned', activation='gelu_tanh', gated=False, attention_bias=True, mlp_bias=True))
TEACHER = dict(vocab_size=320, width=16, layers=4, mlp_width=24, max_length=64)


@pytest.fixture(scope='module', params=sorted(SHAPES))
def teacher(request, tmp_path_factory, small):
  """(its directory, config, params)."""
  config = {**TEACHER, **SHAPES[request.param]}
  shapes = tree.flatten(jax.eval_shape(MODELS['transformer'](**config).init, jax.random.key(0)))
  rng = np.random.default_rng(0)
  params = {path: np.asarray(0.3 * rng.standard_normal(x.shape) + path.endswith('scale'), np.float32) for path, x in shapes.items()}
  directory = tmp_path_factory.mktemp('teacher')
  weights.write_hf(directory, 'transformer', config, tree.unflatten(params))
  small.text.save(directory)
  return directory, config, params


def student(directory, **settings):
  return roles.load_role(dict(from_teacher=dict(load=str(directory), **settings)))


def test_all_layers_are_the_teacher_bitwise(teacher):
  directory, _, params = teacher
  for role in (student(directory), student(directory, layers=[0, 1, 2, 3], width=16)):
    assert role.model is roles.load_role(dict(load=str(directory))).model
    jax.tree.map(np.testing.assert_array_equal, tree.flatten(role.params), params)
  assert role.text.fingerprint == roles.load_role(dict(load=str(directory))).text.fingerprint


def test_every_second_layer_is_what_a_person_picks(teacher):
  """Against the teacher in transformers, from whose list of layers two are taken out by hand."""
  torch = pytest.importorskip('torch')
  directory, _, params = teacher
  role = student(directory, layers=2)
  assert role.model.config['layers'] == 2
  model = proof.transformers_model(directory)
  body = model.transformer if hasattr(model, 'transformer') else model.model
  name = 'h' if hasattr(body, 'h') else 'layers'
  setattr(body, name, torch.nn.ModuleList([getattr(body, name)[i] for i in (0, 2)]))
  ids = [3, 1, 4, 1, 5, 9, 2, 6]
  with torch.no_grad():
    theirs = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].numpy()
  np.testing.assert_allclose(proof._logits(role, [ids])[0], theirs, atol=1e-4, rtol=0)
  np.testing.assert_array_equal(student(directory, layers=[1, 3]).params['layers']['0']['mlp']['up']['kernel'], params['layers/0/mlp/up/kernel'][[1, 3]])


def test_cut_in_width_the_weights_fit_together(teacher):
  directory, config, params = teacher
  role = student(directory, layers=2, width=8)
  assert {name: role.model.config[name] for name in ('layers', 'width', 'heads', 'head_dim', 'mlp_width')} == dict(
      layers=2, width=8, heads=2, head_dim=4, mlp_width=12)
  flat = tree.flatten(role.params)
  assert {path: x.shape for path, x in flat.items()} == weights.expected('transformer', role.model.config)
  np.testing.assert_array_equal(flat['layers/0/attention/q/kernel'], params['layers/0/attention/q/kernel'][[0, 2], :8, :8])
  np.testing.assert_array_equal(flat['layers/0/attention/o/kernel'], params['layers/0/attention/o/kernel'][[0, 2], :8, :8])
  keys = role.model.config['kv_heads'] * 4
  np.testing.assert_array_equal(flat['layers/0/attention/v/bias'], params['layers/0/attention/v/bias'][[0, 2], :keys])
  np.testing.assert_array_equal(flat['layers/0/mlp/down/kernel'], params['layers/0/mlp/down/kernel'][[0, 2], :12, :8])
  np.testing.assert_array_equal(flat['embed/tokens'], params['embed/tokens'][:, :8])
  assert np.isfinite(proof._logits(role, [[1, 2, 3]])).all()


def test_heads_and_units_alone(teacher):
  directory, config, _ = teacher
  role = student(directory, heads=2, mlp_width=5)
  assert (role.model.config['width'], role.model.config['heads'], role.model.config['mlp_width']) == (16, 2, 5)
  assert role.model.config['kv_heads'] == config.get('kv_heads', 4) // 2


def test_a_cut_student_lies_on_a_mesh_decodes_and_may_have_an_adapter(small):
  mesh = mesh_lib.make_mesh(dict(fsdp=2, tensor=2), devices=jax.devices()[:4])
  definition = dict(from_teacher=dict(load=small.teacher['load'], layers=1, width=8), lora=dict(rank=2), params_dtype='bfloat16', overrides=dict(dropout=0.1))
  role = roles.load_role(definition, mesh=mesh)
  assert role.model.config['dropout'] == 0.1 and role.model.config['lora']['rank'] == 2
  flat = tree.flatten(role.params)
  assert flat['layers/0/mlp/up/kernel'].dtype == 'bfloat16' and flat['layers/0/mlp/up/lora_a'].dtype == 'float32'
  assert flat['layers/0/mlp/up/kernel'].addressable_shards[0].data.shape == (1, 4, 8)
  alone = roles.load_role(definition)
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(role.params), jax.device_get(alone.params))
  from distill_jax.decode import sample
  texts, stats = sample.write(alone, alone.params, ['a b', 'c'], [np.zeros(2, np.uint32), np.ones(2, np.uint32)], jax.random.key(0), max_new_tokens=4)
  assert stats['texts'] == 2 and all(len(t[0]['tokens']) for t in texts)


def test_kinds_of_layers_follow_the_layers():
  config = {**TEACHER, **SHAPES['llama'], 'layers': 6, 'head_dim': 4, 'pattern': ('local', 'local', 'global'), 'window': 3}
  assert students.cut(config, layers=[0, 2, 3, 5]).config['pattern'] == ('local', 'global')
  assert students.cut(config, layers=2).config['pattern'] == ('local',)
  only = students.cut(config, layers=[2, 5]).config
  assert only['pattern'] == ('global',) and only['window'] is None


def test_layers_of_a_pattern_with_a_remainder(tmp_path, small):
  config = {**TEACHER, **SHAPES['llama'], 'layers': 5, 'pattern': ('local', 'global'), 'window': 3}
  model = MODELS['transformer'](**config)
  params = jax.device_get(jax.jit(model.init)(jax.random.key(0)))
  weights.write(tmp_path / 'ours', 'transformer', config, params)
  small.text.save(tmp_path / 'ours')
  role = student(tmp_path / 'ours', layers=[1, 2, 4])
  assert role.model.config['pattern'] == ('global', 'local', 'local')
  up = lambda part, place: role.params['layers'][place]['mlp']['up']['kernel'][0] if part == 'layers' else role.params['rest'][place]['mlp']['up']['kernel']
  np.testing.assert_array_equal(up('layers', '0'), params['layers']['1']['mlp']['up']['kernel'][0])
  np.testing.assert_array_equal(up('layers', '1'), params['layers']['0']['mlp']['up']['kernel'][1])
  np.testing.assert_array_equal(up('layers', '2'), params['rest']['0']['mlp']['up']['kernel'])


@pytest.mark.parametrize('settings, message', [
    (dict(layers=3), r'layers=3 does not divide the 4 layers of the teacher \(1, 2, 4 do\); or name them'),
    (dict(layers=[0, 4]), r'layers=\[0, 4\]; give numbers from 0 to 3, ascending'),
    (dict(layers=[2, 0]), 'ascending, each once'),
    (dict(width=32), 'width=32, the teacher has 16; give 1 to 16'),
    (dict(width=6), r"width=6 is 6/16 of the teacher's, and its heads=4 has no such share in whole numbers; give heads= beside it"),
    (dict(heads=3), 'heads=3; the teacher\'s heads share keys and values by 2'),
])
def test_cuts_that_are_refused(settings, message):
  with pytest.raises(ValueError, match='from_teacher: .*' + message):
    students.cut({**TEACHER, **SHAPES['llama'], 'head_dim': 4, 'pattern': ('global',), 'window': None}, **settings)


def test_definitions_that_are_refused(small):
  with pytest.raises(TypeError, match=r"roles.student.from_teacher.depth: cut\(\) takes no keyword 'depth' \(it takes: layers, width"):
    checks.check(dict(roles=dict(student=dict(from_teacher=dict(stage='big', role='student', depth=3)))))
  with pytest.raises(TypeError, match=r"roles.student.lora: lora\(\) needs the keyword 'rank'"):
    checks.check(dict(roles=dict(student=dict(load='x', lora=dict(alpha=3)))))
  with pytest.raises(ValueError, match="from_teacher needs load="):
    roles.load_role(dict(from_teacher=dict(layers=3)))
  with pytest.raises(ValueError, match=r"give either load=.* got \['load', 'from_teacher'\]"):
    roles.load_role(dict(load='x', from_teacher=dict(load='y')))
