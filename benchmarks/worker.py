"""One side of `python -m benchmarks.run --peers`: a process that builds a training loop and runs some steps of it whenever it is asked.

    python -m benchmarks.worker JOB.json         with the interpreter of the side's environment

Its stdin says 'run', or 'end' (or closes); its stdout answers one line of JSON each time: {"seconds", "cross_entropy", "divergence"} of a
round, a pass over all batches of the job, and {"bytes", "device_bytes"}, the peaks of this process, at the end. What libraries print goes
to stderr.

A job: side, device ('cpu' | 'gpu'), dtype, family ('gpt2' | 'llama'), roles {student, teacher: {config: keywords of our transformer,
weights: a directory in the Hugging Face layout}}, tokenizer (a directory), row_length (rows of our side), batches: lists of examples
{tokens, prompt}: all ids, and how many of them carry no loss. Nothing here imports distill_jax: peers' environments have none.
"""
import importlib
import json
import os
import sys
import time

LR, CLIP = 1e-4, 1.0      # every side: AdamW, weight decay 0, a constant rate, the gradient's norm clipped


class Line:
  """The two ends of the pipe. `wait` blocks until a round is asked for and starts the clock; `tell` stops it."""

  def __init__(self):
    self._out = os.fdopen(os.dup(1), 'w', buffering=1)
    os.dup2(2, 1)
    self._began = 0.0

  def wait(self) -> bool:
    """True: run a round. False: end."""
    asked = sys.stdin.readline().strip() == 'run'
    self._began = time.perf_counter()
    return asked

  def tell(self, **losses: float | None) -> None:
    """One round is done, its work on the device too."""
    self.say(seconds=time.perf_counter() - self._began, **losses)

  def say(self, **what) -> None:
    """One line of JSON."""
    self._out.write(json.dumps(what) + '\n')

  def serve(self, call) -> None:
    """Rounds of a function () -> losses, until the end."""
    while self.wait():
      self.tell(**call())


def peak_bytes() -> int:
  """Largest resident size of this process; of Linux's own count, which a child does not inherit, where there is one."""
  try:
    with open('/proc/self/status', encoding='ascii') as lines:
      return next(int(line.split()[1]) * 1024 for line in lines if line.startswith('VmHWM'))
  except OSError:
    import resource
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def peak_device_bytes(device: str) -> int | None:
  """Most memory of the GPU that arrays of this process held at once."""
  if device == 'cpu':
    return None
  if 'jax' in sys.modules:
    import jax
    return jax.devices()[0].memory_stats()['peak_bytes_in_use']
  import torch
  return torch.cuda.max_memory_allocated()


def padded(batch: list[dict], pad: int) -> tuple[list[list[int]], list[list[int]], list[list[int]]]:
  """(ids, 1 where there is an id, 1 where an id is a target), rows as long as the longest of the batch, padded on the right."""
  longest = max(len(example['tokens']) for example in batch)
  ids, there, target = [], [], []
  for example in batch:
    count, prompt = len(example['tokens']), example['prompt']
    ids.append(example['tokens'] + [pad] * (longest - count))
    there.append([1] * count + [0] * (longest - count))
    target.append([0] * prompt + [1] * (count - prompt) + [0] * (longest - count))
  return ids, there, target


def main() -> None:
  """Runs the side of the job named on the command line."""
  with open(sys.argv[1], encoding='utf-8') as file:
    job = json.load(file)
  line = Line()
  module, _, variant = job['side'].partition(':')
  importlib.import_module(f'benchmarks.sides.{module}').serve(job, line, *([variant] if variant else []))
  line.say(bytes=peak_bytes(), device_bytes=peak_device_bytes(job['device']))


if __name__ == '__main__':
  main()
