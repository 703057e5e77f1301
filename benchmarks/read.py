"""Reading a checkpoint against reading its bytes: weights.read of a made-up Llama shape beside plain reads of the same file, interleaved.

    python -m benchmarks.read                about 1 GB in a temporary directory; --dtype bfloat16, --gigabytes 0.1 for a check that it runs

Both find the file in the page cache. The plain read gives its bytes; ours arrays on the device, turned and stacked, in the dtype of the
file (of a bfloat16 one also as float32, twice the bytes).
"""
import argparse
import json
import pathlib
import statistics
import tempfile

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import measure
from distill_jax.models import weights


def make(directory: pathlib.Path, gigabytes: float, dtype: str) -> None:
  """A Llama directory of about so many gigabytes: layers of 100 M bytes in float32."""
  from safetensors.numpy import save_file
  width, inner, vocab, kv = 1024, 4096, 32000, 256
  size = np.dtype(jnp.dtype(dtype)).itemsize
  layers = max(round((gigabytes * 1e9 / size - 2 * vocab * width) / (2 * width * width + 2 * width * kv + 3 * width * inner)), 1)
  rng = np.random.default_rng(0)
  draw = lambda *shape: rng.standard_normal(shape, np.float32).astype(jnp.dtype(dtype))
  tensors = {'model.embed_tokens.weight': draw(vocab, width), 'lm_head.weight': draw(vocab, width), 'model.norm.weight': draw(width)}
  below = {'input_layernorm': (width,), 'post_attention_layernorm': (width,), 'self_attn.q_proj': (width, width), 'self_attn.k_proj': (kv, width),
           'self_attn.v_proj': (kv, width), 'self_attn.o_proj': (width, width), 'mlp.gate_proj': (inner, width), 'mlp.up_proj': (inner, width),
           'mlp.down_proj': (width, inner)}
  for layer in range(layers):
    tensors |= {f'model.layers.{layer}.{name}.weight': draw(*shape) for name, shape in below.items()}
  save_file(tensors, directory / 'model.safetensors', metadata={'format': 'pt'})
  (directory / 'config.json').write_text(json.dumps(dict(
      architectures=['LlamaForCausalLM'], vocab_size=vocab, hidden_size=width, intermediate_size=inner, num_hidden_layers=layers,
      num_attention_heads=16, num_key_value_heads=4, max_position_embeddings=2048, tie_word_embeddings=False)))


def reading(count: int, gigabytes: float, dtype: str) -> dict:
  """A row of the table of benchmarks/run.py."""
  with tempfile.TemporaryDirectory() as home:
    directory = pathlib.Path(home)
    make(directory, gigabytes, dtype)
    path = directory / 'model.safetensors'
    size = path.stat().st_size

    def plain():
      with open(path, 'rb', buffering=0) as file:
        return len(file.read())

    def ours(dtype):
      put = lambda _, shape, piece: jax.device_put(piece((slice(None),) * len(shape), jnp.dtype(dtype)))
      return lambda: jax.block_until_ready(weights.read(directory, put=put)[2])

    calls = {'plain': plain, 'ours': ours(dtype)} | ({} if dtype == 'float32' else {'as float32': ours('float32')})
    seconds = measure.interleave(calls, count)
  median = {name: statistics.median(values) for name, values in seconds.items()}
  return dict(name=f'reading {size / 1e9:.1f} GB of {dtype}, GB/s', ours=size / 1e9 / median['ours'], other=size / 1e9 / median['plain'],
              against='plain reads of the file', ratio=measure.ratio(seconds, 'ours', 'plain'), goal=1.5,
              **({} if dtype == 'float32' else {'as float32': measure.ratio(seconds, 'as float32', 'plain')}))


def main() -> None:
  """Prints the row."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--count', type=int, default=5, help='interleaved runs of each')
  parser.add_argument('--gigabytes', type=float, default=1.0)
  parser.add_argument('--dtype', choices=('float32', 'bfloat16'), default='float32')
  args = parser.parse_args()
  for name, value in reading(args.count, args.gigabytes, args.dtype).items():
    print(f'{name:12s} {value}')


if __name__ == '__main__':
  main()
