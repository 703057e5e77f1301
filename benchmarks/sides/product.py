"""A plain matrix product: what this machine's arithmetic gives a program that does nothing else."""
import jax
import jax.numpy as jnp

SIZE = {'cpu': 2048, 'gpu': 8192}


def flops(device: str) -> float:
  """Of a round."""
  return 2.0 * SIZE[device] ** 3


def serve(job: dict, line) -> None:
  """Rounds of one product, float32 sums."""
  size = SIZE[job['device']]
  a, b = (jax.random.normal(jax.random.key(i), (size, size), jnp.dtype(job['dtype'])) for i in range(2))
  multiply = jax.jit(lambda a, b: jnp.matmul(a, b, preferred_element_type=jnp.float32))

  def call():
    multiply(a, b).block_until_ready()
    return dict(cross_entropy=None, divergence=None)
  line.serve(call)
