"""What benchmarks share: shapes, their twins in transformers, interleaved timing."""
import statistics
import time

GPT2 = dict(norm='layer', positions='learned', activation='gelu_tanh', gated=False, attention_bias=True, mlp_bias=True, tied=True)


def shape(width: int, layers: int, *, vocab: int, length: int) -> dict:
  """Keywords of a GPT-2 shape."""
  return dict(vocab_size=vocab, width=width, layers=layers, heads=width // 64, mlp_width=4 * width, max_length=length, **GPT2)


def torch_twin(config: dict):
  """The same shape in transformers."""
  import transformers
  return transformers.GPT2LMHeadModel(transformers.GPT2Config(
      vocab_size=config['vocab_size'], n_embd=config['width'], n_layer=config['layers'], n_head=config['heads'],
      n_positions=config['max_length'], resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=None))


def interleave(runs: dict, count: int) -> dict[str, list[float]]:
  """Seconds of each of `runs`, called in turn `count` times after one warm-up each."""
  for call in runs.values():
    call()
  seconds = {name: [] for name in runs}
  for _ in range(count):
    for name, call in runs.items():
      began = time.perf_counter()
      call()
      seconds[name].append(time.perf_counter() - began)
  return seconds


def ratio(seconds: dict[str, list[float]], slow: str, fast: str) -> dict[str, float]:
  """Median, minimum and maximum of slow / fast over neighbouring runs."""
  ratios = [a / b for a, b in zip(seconds[slow], seconds[fast])]
  return dict(median=statistics.median(ratios), low=min(ratios), high=max(ratios))
