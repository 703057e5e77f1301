"""Talk to a checkpoint: python -m distill_jax.chat DIR [--temperature=0.7] [--max_new_tokens=200] [--calculator] [--raw].

DIR is a checkpoint directory (ours or Hugging Face's), 'bundled:teacher', or a hub id. A tokenizer with a chat template
gets the whole conversation; any other gets each line, with a line break after it, as a prompt of its own.
"""
import argparse
import os
import pathlib
import sys
from typing import Any, Callable, Mapping, Sequence


def flags() -> argparse.ArgumentParser:
  """The command line."""
  parser = argparse.ArgumentParser(prog='python -m distill_jax.chat', description='Talk to a checkpoint. Ends with Ctrl-D or Ctrl-C.')
  parser.add_argument('directory', metavar='DIR', help="a checkpoint directory, 'bundled:teacher', or a hub id")
  parser.add_argument('--temperature', type=float, default=0.0, help='0, the default, always takes the likeliest token')
  parser.add_argument('--top_p', '--top-p', type=float, default=1.0)
  parser.add_argument('--max_new_tokens', '--max-new-tokens', type=int, default=None, help='default 200, less where the model is short')
  parser.add_argument('--calculator', action='store_true', help='let a calculator write what follows = inside << >>')
  parser.add_argument('--raw', action='store_true', help='the line as it is: no chat template, no line break after it')
  parser.add_argument('--seed', type=int, default=0)
  return parser


def room(role, max_new_tokens: int | None) -> tuple[int, int | None]:
  """(new tokens, prompt tokens) that fit the model; None: no limit on the prompt. The default leaves the prompt half the model."""
  most = (role.model.config or {}).get('max_length')
  if max_new_tokens is None:
    max_new_tokens = 200 if most is None else max(min(200, most // 2), 1)
  return max_new_tokens, None if most is None else most - max_new_tokens


def shorten(messages: Sequence[Mapping[str, str]], fits: Callable[[Sequence], bool]) -> list[Mapping[str, str]]:
  """The newest messages that fit, beginning with what the person says; the last one always stays."""
  messages = list(messages)
  while len(messages) > 1 and not fits(messages):
    messages = messages[2:]
  return messages


def replies(role, lines, *, options: argparse.Namespace):
  """Yields the model's reply to each line."""
  import jax
  from distill_jax.core import keys
  from distill_jax.decode import sample
  writer = None
  if options.calculator:
    from distill_jax.tasks.calculator import calculator as writer
  new, space = room(role, options.max_new_tokens)
  templated = not options.raw and bool(role.text.tokenizer.chat_template)
  fits = lambda messages: space is None or len(role.text.encode(role.text.chat(messages))) <= space
  messages: list[dict[str, Any]] = []
  for turn, line in enumerate(lines):
    if templated:
      messages = shorten([*messages, dict(role='user', content=line)], fits)
      prompt = role.text.chat(messages)
    else:
      prompt = line if options.raw else line + '\n'
    [[told]], stats = sample.write(
        role, role.params, [prompt], [keys.content_id(turn, prompt)], jax.random.key(options.seed), max_new_tokens=new,
        temperature=options.temperature, top_p=options.top_p, batch=1, writer=writer)
    if stats['cut_prompts']:
      print(f'(the prompt is longer than the {space} tokens that fit; its beginning was left out)', file=sys.stderr)
    messages.append(dict(role='assistant', content=told['text']))
    yield told['text'] + ('' if told['finished'] else ' ...')


def listen():
  """Lines from the keyboard or a pipe, empty ones left out, until the end."""
  if sys.stdin.isatty():
    import readline  # noqa: F401 (line editing and history for input())
  while True:
    try:
      line = input('> ' if sys.stdin.isatty() else '')
    except EOFError:
      return
    if line.strip():
      yield line


def main(arguments: Sequence[str] | None = None) -> int:
  """Exit code: 0 after the last line, 1 where there is no usable checkpoint."""
  options = flags().parse_args(arguments)
  os.environ.setdefault('TOKENIZERS_PARALLELISM', 'false')
  try:
    from distill_jax.stages.roles import load_role
    role = load_role({'load': options.directory})
    if sys.stdin.isatty():
      print(f'{options.directory}: {role.model.config}. Ctrl-D ends.', file=sys.stderr)
    for reply in replies(role, listen(), options=options):
      print(reply, flush=True)
  except KeyboardInterrupt:
    print(file=sys.stderr)
  except (OSError, ValueError) as error:
    print(error, file=sys.stderr)
    below = [path for name in ('model.json', 'config.json') for path in pathlib.Path(options.directory).glob(f'*/{name}')]
    if found := sorted({str(path.parent) for path in below}):
      print('There are checkpoints in ' + ', '.join(found), file=sys.stderr)
    return 1
  return 0


if __name__ == '__main__':
  sys.exit(main())
