"""bfloat16 against float32 on this machine: matrix products by the type of their result, and our distillation step.

Part of `python -m benchmarks.run` (--only=bf16). Processors with avx512_bf16 or amx multiply bfloat16 faster than float32. XLA's CPU
backend (jaxlib 0.10.2) reaches those units where both arguments are bfloat16 and the product's own result is float32
(`preferred_element_type=float32`; a cast after it does no harm): then YNNPACK gets the bfloat16 arrays. A product whose result is bfloat16,
or one of whose arguments is float32 (as in derivatives of the above), is made of float32 copies. Tried, and changed nothing of that:
--xla_cpu_use_onednn, --xla_cpu_experimental_onednn_custom_call, --xla_cpu_max_isa=AMX_FP16, --xla_cpu_strict_dot_conv_math=false,
--xla_allow_excess_precision=false; an empty --xla_cpu_experimental_ynn_fusion_type loses the mixed product too, with oneDNN or XNNPACK
asked for or not; DOT and ELTWISE in it makes all products slower.
"""
import re
import statistics

import jax
import jax.numpy as jnp

from benchmarks import measure


def units() -> str:
  """The bfloat16 units that Linux says this processor has; '' where it says none."""
  try:
    with open('/proc/cpuinfo', encoding='utf-8') as file:
      return ' '.join(sorted(set(re.findall(r'\b(?:avx512_bf16|amx_bf16)\b', file.read()))))
  except OSError:
    return ''


def products(count: int, quick: bool) -> list[dict]:
  """Products of two square matrices."""
  size = 128 if quick else 2048
  narrow = jax.random.normal(jax.random.key(0), (size, size), jnp.bfloat16)
  wide = narrow.astype(jnp.float32)
  product = jax.jit(lambda a, b, out: jnp.matmul(a, b, preferred_element_type=out), static_argnums=2)
  seconds = measure.interleave({name: (lambda x=x, out=out: product(x, x, out).block_until_ready()) for name, x, out in (
      ('float32', wide, jnp.float32), ('mixed', narrow, jnp.float32), ('bfloat16', narrow, jnp.bfloat16))}, count)
  speed = {name: 2 * size ** 3 / statistics.median(values) / 1e9 for name, values in seconds.items()}
  return [dict(name=f'product bf16 -> {"f32" if name == "mixed" else "bf16"}, GFLOP/s', ours=speed[name], other=speed['float32'],
               against='float32 product', ratio=measure.ratio(seconds, 'float32', name), goal=1.0) for name in ('mixed', 'bfloat16')]


def step(count: int, quick: bool, our_step) -> dict:
  """The distillation step of `kd`. our_step: see run.py."""
  vocab, rows, length = (512, 2, 16) if quick else (32000, 8, 128)
  shapes = [measure.shape(width, layers, vocab=vocab, length=length) for width, layers in ((256, 4), (512, 8))]
  runs = {dtype: our_step(*(dict(shape, dtype=dtype) for shape in shapes), rows, length)[0] for dtype in ('float32', 'bfloat16')}
  seconds = measure.interleave(runs, count)
  speed = {name: rows * length / statistics.median(values) for name, values in seconds.items()}
  return dict(name='KD step in bf16, tokens/s', ours=speed['bfloat16'], other=speed['float32'], against='ours in float32',
              ratio=measure.ratio(seconds, 'float32', 'bfloat16'), goal=1.0)
