"""Memory at its peak: sizes, lives and shared memory by hand, and whole programs against the compiler's own analysis."""
import jax
import jax.numpy as jnp
import pytest

from distill_jax.core import live


def compiled(function, *shapes, **keywords):
  return jax.jit(function, **keywords).lower(*[jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]).compile()


def total(made):
  said = made.memory_analysis()
  return said.argument_size_in_bytes + said.output_size_in_bytes - said.alias_size_in_bytes + said.temp_size_in_bytes


@pytest.mark.parametrize('type_, size', [
    ('f32[3,5]{1,0}', 60), ('pred[7]{0}', 7), ('f32[]', 4), ('s32[]{:T(128)}', 512),
    ('f32[100,3]{1,0:T(8,128)}', 104 * 128 * 4), ('f32[100,3]{0,1:T(8,128)}', 8 * 128 * 4),
    ('bf16[24,1,512,896]{3,2,1,0:T(8,128)(2,1)S(1)}', 22020096),
    ('f32[128,7,75968]{2,1,0:T(8,128)}', 128 * 8 * 76032 * 4), ('f32[1000]{0:T(1024)}', 4096), ('bf16[3]{0:T(256)(128)(2,1)}', 512)])
def test_arrays_take_whole_tiles(type_, size):
  assert live.size_of(type_) == size


TEXT = '''HloModule m, is_scheduled=true, input_output_alias={ {0}: (0, {}, may-alias) }

FileNames
1 "/x/distill_jax/losses/sweep.py"

FunctionNames
1 "chunk"
2 "loss"

FileLocations
1 {file_name_id=1 function_name_id=1 line=27}
2 {file_name_id=1 function_name_id=2 line=30}

StackFrames
1 {file_location_id=2 parent_frame_id=1}
2 {file_location_id=1 parent_frame_id=2}

%fused (p: f32[1024], q: f32[1024]) -> f32[1024] {
  %p = f32[1024]{0:T(1024)} parameter(0)
  %q = f32[1024]{0:T(1024)} parameter(1)
  ROOT %add.1 = f32[1024]{0:T(1024)} add(%p, %q)
}

ENTRY %main (a: f32[1024], b: f32[1024]) -> (f32[1024], f32[1]) {
  %a = f32[1024]{0:T(1024)} parameter(0), metadata={op_name="params[\\'a\\']"}
  %b = f32[1024]{0:T(1024)} parameter(1)
  %near = f32[1024]{0:T(1024)S(1)} negate(%a)
  %x = f32[1024]{0:T(1024)} negate(%near), metadata={op_name="jit(f)/neg" stack_frame_id=2}
  %y = f32[1024]{0:T(1024)} fusion(%x, %b), kind=kLoop, calls=%fused, metadata={op_name="jit(f)/add"}
  %z = f32[4096]{0:T(1024)} concatenate(%y, %y, %y, %y), dimensions={0}
  %out = f32[1024]{0:T(1024)} slice(%z), slice={[0:1024]}
  %one = f32[1]{0} slice(%z), slice={[0:1]}
  ROOT %tuple = (f32[1024]{0:T(1024)}, f32[1]{0}) tuple(%out, %one)
}
'''


def test_a_program_by_hand():
  """At the peak: two arguments (the first result lies in one), the small result, y in place of x, z. Not what is on the chip."""
  peak = live.read(TEXT, platform='tpu')
  assert peak.total == 2 * 4096 + 4 + 4096 + 4 * 4096 == sum(one.size for one in peak.held)
  assert [(one.role, one.made.kind) for one in peak.held] == [
      ('temporary', 'concatenate'), ('argument', 'parameter'), ('argument', 'parameter'), ('temporary', 'fusion'), ('result', 'slice')]
  assert peak.held[1].made.path == "params['a']"


def test_an_instruction_on_several_lines_is_one():
  kernel = '%near = f32[1024]{0:T(1024)S(1)} custom-call(%a), custom_call_target="k", frontend_attributes={notes={\n"a":"b"\n}}'
  text = TEXT.replace('%near = f32[1024]{0:T(1024)S(1)} negate(%a)', kernel)
  assert text != TEXT and live.read(text, platform='tpu').total == live.read(TEXT, platform='tpu').total


def test_sources_of_what_is_held():
  text = TEXT.replace('%z = f32[4096]{0:T(1024)} concatenate(%y, %y, %y, %y), dimensions={0}',
                      '%z = f32[4096]{0:T(1024)} concatenate(%x, %y, %y, %y), dimensions={0}')      # now x lives on, beside y
  peak = live.read(text, platform='tpu')
  assert peak.total == 2 * 4096 + 4 + 2 * 4096 + 4 * 4096
  (x,) = (one for one in peak.held if one.made.kind == 'negate')
  file = '/x/distill_jax/losses/sweep.py'
  assert x.made == live.Place('negate', 'jit(f)/neg', ((file, 'chunk'), (file, 'loss')))
  assert x.count == 1024 and x.used.kind == 'concatenate'


def test_what_the_compiler_may_write_over_is_what_it_says():
  text = TEXT.replace('kind=kLoop, calls=%fused', 'kind=kCustom, calls=%fused, backend_config={"aliasing_operands":{"lists":[]}}')
  far = live.read(text, platform='tpu').total
  shared = live.read(text.replace('"lists":[]', '"lists":[{"indices":["0","2"]}]'), platform='tpu').total
  assert (far, shared) == (live.read(TEXT, platform='tpu').total,) * 2      # x has ended before z is made
  wide = lambda text: text.replace('f32[4096]{0:T(1024)} concatenate(%y, %y, %y, %y)', 'f32[1]{0} concatenate(%y)')
  assert live.read(wide(text), platform='tpu').total == 2 * 4096 + 4 + 2 * 4096
  assert live.read(wide(text.replace('"lists":[]', '"lists":[{"indices":["0","2"]}]')), platform='tpu').total == 2 * 4096 + 4 + 4096 + 4


def layers(weights_NDD, x):
  return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), x), x, weights_NDD)


@pytest.mark.parametrize('function, shapes', [
    (layers, ((6, 64, 64), (512, 64))),
    (lambda w, x: jax.grad(lambda w: (layers(w, x)[0] ** 2).sum())(w), ((6, 64, 64), (512, 64))),
    (lambda x: jnp.sort(x @ x.T, axis=0)[:3], ((300, 40),)),
    (lambda x, y: jax.lax.cond(x[0, 0] > 0, lambda: (x @ y).sum(), lambda: (y @ x).sum()), ((200, 100), (100, 200)))],
    ids=['scan', 'gradient', 'sort', 'cond'])
def test_programs_against_the_compiler(function, shapes):
  made = compiled(function, *shapes)
  assert live.read(made.as_text(), platform='cpu').total == pytest.approx(total(made), rel=0.05)


def test_what_is_donated_is_counted_once():
  keep, give = (compiled(lambda x: x * 2 + 1, (1000, 100), donate_argnums=donated) for donated in ((), 0))
  assert [live.read(made.as_text(), platform='cpu').total for made in (keep, give)] == pytest.approx([800e3, 400e3], rel=0.001)


def test_a_long_loop_holds_no_more_than_a_short_one():
  made = [compiled(lambda x: jax.lax.fori_loop(0, count, lambda i, x: jnp.tanh(x @ x), x), (64, 64)) for count in (3, 30)]
  peaks = [live.read(one.as_text(), platform='cpu').total for one in made]
  assert peaks[0] == pytest.approx(peaks[1], rel=0.01)
