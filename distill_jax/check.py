"""Is a checkpoint read as transformers reads it?  python -m distill_jax.check DIR [--prompt=TEXT ...] [--device=cpu] [--seed=0]

DIR is a Hugging Face directory or hub id, one of ours (what a train stage writes; exported to a temporary place first), or 'bundled:x'.
Runs both on the same prompts and on random ids, in float32, and prints the largest difference of a logit, the first greedy token that
differs, and a verdict. Exit code: 0 they are equal, 1 they are not, 2 nothing could be compared.
"""
import argparse
import os
import pathlib
import sys
import tempfile
from typing import Any, Mapping, Sequence

EQUAL, DIFFERENT, NOTHING = 0, 1, 2


def flags() -> argparse.ArgumentParser:
  """The command line."""
  parser = argparse.ArgumentParser(prog='python -m distill_jax.check', description='Compares us with transformers.')
  parser.add_argument('directory', metavar='DIR', help="a checkpoint directory (ours or Hugging Face's), a hub id, or 'bundled:teacher'")
  parser.add_argument('--prompt', action='append', metavar='TEXT', help='a prompt; may be given several times (default: four short ones)')
  parser.add_argument('--device', default=None, metavar='NAME', help='what ours runs on: cpu, gpu, tpu; theirs runs on the CPU')
  parser.add_argument('--seed', type=int, default=0, help='of the random ids')
  return parser


def compare(directory: str, prompts: Sequence[str] | None, *, seed: int) -> dict[str, Any]:
  """`proof.prove` of a checkpoint; of one of ours by way of a temporary export."""
  import jax
  from distill_jax.models import weights
  from distill_jax.stages import proof, roles
  where = roles.find(directory)
  role = roles.merged(roles.load_role({'load': directory}))
  prompts = list(prompts or proof.ANY_TEXT)
  if not (where / 'model.json').is_file():
    return proof.prove(role, lambda: proof.transformers_model(where), prompts, seed=seed)
  with tempfile.TemporaryDirectory() as temporary:
    made = pathlib.Path(temporary) / 'model'
    weights.write_hf(made, *roles.model_config(role), jax.device_get(role.params))
    return proof.prove(role, lambda: proof.transformers_model(made), prompts, seed=seed)


def say(facts: Mapping[str, Any]) -> str:
  """The figures and the verdict, a line each."""
  first = facts['first_difference']
  greedy = f'equal ({facts["greedy_tokens"]} tokens of {facts["prompts"]} prompts)' if first is None else (
      f'{first["prompt"]!r}: the first {first["place"]} tokens are equal, then ours is {first["ours"]} and theirs {first["theirs"]} '
      f'(their logits are {first["gap"]:.1e} apart)')
  verdict = 'EQUAL' if facts['proved'] else 'NOT EQUAL'
  verdict += ' (the first difference is a tie within float32 noise)' if facts['proved'] and first is not None else ''
  return (f'largest difference of a logit: {facts["max_logit_difference"]:.2e} (float32 noise up to {facts["bound"]:.1e})\n'
          f'greedy texts: {greedy}\nverdict: {verdict}')


def main(arguments: Sequence[str] | None = None) -> int:
  """Exit code: 0 equal, 1 not equal, 2 nothing could be compared."""
  options = flags().parse_args(arguments)
  os.environ.setdefault('TOKENIZERS_PARALLELISM', 'false')
  from distill_jax.stages import proof
  if not proof.has_torch():
    print(f'nothing was compared: {proof.NO_TORCH}', file=sys.stderr)
    return NOTHING
  try:
    if options.device is not None:
      import jax
      jax.config.update('jax_default_device', jax.devices(options.device)[0])
    facts = compare(options.directory, options.prompt, seed=options.seed)
  except (OSError, ValueError, RuntimeError) as error:      # no such directory, architecture, weights or device
    print(f'nothing was compared: {error}', file=sys.stderr)
    return NOTHING
  print(say(facts))
  return EQUAL if facts['proved'] else DIFFERENT


if __name__ == '__main__':
  sys.exit(main())
