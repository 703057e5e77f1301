"""Memory of head and loss: bytes of the compiled gradient beside its arguments and results, by the compiler's own analysis. No run, no wait.

    python -m benchmarks.head                    cross-entropy + KL to a live teacher, one row of L tokens, vocabulary 128,256

Ours goes over chunks of tokens (losses/sweep.py); dense is the same loss over all logits at once, differentiated by JAX. Hidden states and
the gradients of hidden states and head are arguments and results on both sides, and not counted.
"""
import argparse

import jax
import jax.numpy as jnp

from distill_jax.core.types import Head
from distill_jax.losses import divergence, tokens


def both(logits, teacher_logits, targets):
  """The loss of `logit_kd` at alpha 0.5."""
  return {'loss': 0.5 * tokens.cross_entropy(logits, targets) + 0.5 * divergence.forward_kl(logits, teacher_logits)}


def ours(student, teacher, targets):
  """By chunks."""
  return tokens.means(both, jnp.ones(targets.shape), student, teacher, targets)['loss'].total


def dense(student, teacher, targets):
  """Over all logits, with JAX's own softmax and derivatives."""
  logits = student['head'].logits(student['hidden'])
  ls, lt = (jax.nn.log_softmax(x) for x in (logits, jax.lax.stop_gradient(teacher['head'].logits(teacher['hidden']))))
  hard = -jnp.take_along_axis(ls, targets[..., None], -1)[..., 0]
  return 0.5 * jnp.sum(hard) + 0.5 * jnp.sum(jnp.exp(lt) * (lt - ls))


def held(loss, *, length: int, vocabulary: int, width: int, teacher_width: int) -> int:
  """Bytes of temporaries of the gradient with respect to hidden states and head."""
  shape = lambda *size: jax.ShapeDtypeStruct(size, jnp.float32)
  out = lambda D: {'hidden': shape(1, length, D), 'head': shape(D, vocabulary)}
  as_out = lambda x: {'hidden': x['hidden'], 'head': Head(x['head'])}
  gradient = jax.grad(lambda student, teacher, targets: loss(as_out(student), as_out(teacher), targets))
  compiled = jax.jit(gradient).lower(out(width), out(teacher_width), jax.ShapeDtypeStruct((1, length), jnp.int32)).compile()
  return compiled.memory_analysis().temp_size_in_bytes


def main() -> None:
  """Prints the table."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--lengths', type=int, nargs='+', default=[2048, 8192])
  parser.add_argument('--vocabulary', type=int, default=128256)
  parser.add_argument('--width', type=int, default=256)
  parser.add_argument('--teacher_width', type=int, default=512)
  args = parser.parse_args()
  print(f'{"tokens":>8s}{"ours, MB":>12s}{"dense, MB":>12s}{"ratio":>9s}')
  for length in args.lengths:
    sizes = dict(length=length, vocabulary=args.vocabulary, width=args.width, teacher_width=args.teacher_width)
    a, b = held(ours, **sizes), held(dense, **sizes)
    print(f'{length:8,d}{a / 1e6:12,.0f}{b / 1e6:12,.0f}{a / b:9.3f}')


if __name__ == '__main__':
  main()
