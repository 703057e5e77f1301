"""What a recipe needs on a slice of chips, without the chips.

  python -m distill_jax.plan --config=FILE[:size] --topology=v5e:4x4[,v6e:16x16,...]
      [--only=STAGE] [--prompt=256] [--json=FILE] [--config.stages.x.y=value]

Compiles the real train, label and sampling steps of the recipe for the slice (v4, v5e, v5p, v6e; cpu:8) with the TPU compiler, which runs
on any machine (pip install -e '.[tpu]'), and says for each whether it fits, bytes a chip, operations, bytes moved, collectives, the
roofline, and what would make it fit. No weights and no data are read.
"""
import json
import pathlib
import re
import sys
import time
from typing import Any, Callable, Mapping, NamedTuple

from absl import app
from absl import flags
from absl import logging
import jax

from distill_jax import main as main_lib
from distill_jax import plan_table
from distill_jax.core import chips, hlo, live
from distill_jax.stages import estimates, memory, programs

_TOPOLOGY = flags.DEFINE_list('topology', None, 'Slices to plan for: v4, v5e, v5p or v6e with their size, as v6e:16x16; or cpu:8.')
_JSON = flags.DEFINE_string('json', None, 'Also write everything that was found to this file.')
_PROMPT = flags.DEFINE_integer('prompt', programs.PROMPT, 'Tokens of the longest prompt of generate and evaluate stages.', lower_bound=16)
TRIES = 3      # changes that are compiled, of those that by a rough estimate may fit


class Compiled(NamedTuple):
  """A program on one chip. parts: of memory, bytes, by the compiler's analysis, peak: the most of them that hold something at once, by the
  same; held, work: read from the program; error: why there is no program."""
  parts: Mapping[str, float]
  peak: float
  held: live.Peak | None
  work: hlo.Work | None
  xla: Mapping[str, float]
  seconds: float
  error: str | None = None


def compile_program(program: programs.Program) -> Compiled:
  """The Compiled of a program. A program that is too large for the chip is no error here: `error` says by how much."""
  began = time.perf_counter()
  try:
    with chips.quiet():
      made = program.function.lower(*program.arguments).compile()
  except Exception as error:      # the runtime's own error type
    message = str(error)
    if not isinstance(error, jax.errors.JaxRuntimeError):
      raise
    used = re.search(r'Used ([\d.]+)([KMGT]) of ([\d.]+)([KMGT]) hbm', message)
    size = float(used[1]) * 1024 ** ('KMGT'.index(used[2]) + 1) if used else float('nan')
    said = f'needs {used[1]}{used[2]} of {used[3]}{used[4]}' if used else f'the compiler fails: {message.splitlines()[0][:300]}'
    return Compiled(dict(together=size), size, None, None, {}, time.perf_counter() - began, said)
  said, cost = made.memory_analysis(), made.cost_analysis() or {}
  parts = dict(arguments=said.argument_size_in_bytes, results=said.output_size_in_bytes - said.alias_size_in_bytes,
               temporaries=said.temp_size_in_bytes)
  together, platform = float(sum(parts.values())), program.mesh.devices.flat[0].platform
  text = made.as_text()
  work, held = hlo.read(text, unknown=program.rounds), live.read(text, platform=platform)
  xla = {name: cost[key] for name, key in (('flops', 'flops'), ('bytes', 'bytes accessed')) if key in cost}
  # on CPU the analysis leaves temporaries out of its peak
  peak = float(said.peak_memory_in_bytes) if platform == 'tpu' else together
  return Compiled({**parts, 'together': together}, peak, held, work, xla, time.perf_counter() - began)


def measure(program: programs.Program, chip: chips.Chip | None) -> dict[str, Any]:
  """Everything about one program, as plain data.

  total: what the program needs by the compiler's analysis, with what lies beside it. peak: what holds something at once, by the same.
  predicted: the same read from the program, by part; difference: from `peak`. rough: from shapes alone, before compiling.
  """
  compiled = compile_program(program)
  held = {name: programs.bytes_of(part) for name, part in program.parts.items()}
  beside = {name: programs.bytes_of(part) for name, part in program.beside.items()}
  around = sum(beside.values())
  total = compiled.parts['together'] + around
  out = dict(
      step=program.kind, mesh={axis: size for axis, size in program.mesh.shape.items() if size > 1}, groups=program.groups,
      tokens=program.tokens, held=held, beside=beside, compiler=compiled.parts, total=total, peak=compiled.peak + around,
      rough=sum(estimates.rough(program).values()), compile_seconds=compiled.seconds,
      model_flops=estimates.model_flops(program), error=compiled.error,
      fits=None if chip is None else compiled.error is None and total <= chip.memory - chips.RESERVED)
  if compiled.work is not None:
    work, predicted = compiled.work, {**memory.split(program, compiled.held), **({'beside': float(around)} if around else {})}
    out.update(predicted=predicted, predicted_total=sum(predicted.values()), difference=sum(predicted.values()) / out['peak'] - 1)
    out.update(flops=work.flops, bytes=work.bytes, collectives={c.kind: dict(count=c.count, bytes=c.bytes) for c in work.collectives},
               loops_by_data=work.assumed, rounds=program.rounds, xla_without_loops=compiled.xla)
    if chip is not None:
      out['roofline'] = estimates.roofline(program, work, chip)._asdict()
  return out


def plan_stage(recipe, stage: str, where: chips.Slice, *, prompt: int) -> list[dict[str, Any]]:
  """The rows of one stage. Where it is refused or does not fit: also those with the first change that makes it fit."""
  try:
    rows = [measure(program, where.chip) for program in programs.programs_of(recipe, stage, where.devices, prompt=prompt)]
  except ValueError as error:
    rows = [dict(step='', refused=str(error), fits=False)]
  if all(row['fits'] is not False for row in rows):
    return rows
  tried = 0
  for change in estimates.changes(recipe, stage, len(where.devices)):
    other = estimates.changed(recipe, change)
    if tried == TRIES or not estimates.within(other, stage, where.devices, where.chip, prompt=prompt):
      continue
    tried += 1
    again = [measure(program, where.chip) for program in programs.programs_of(other, stage, where.devices, prompt=prompt)]
    if all(row['fits'] is not False for row in again):
      return [*rows, *(dict(row, change=estimates.spell(change, recipe)) for row in again)]
  return [*rows, dict(step='', refused='no change that was tried makes it fit: take more or larger chips, or a smaller model', fits=False)]


def same(recipe, stage: str) -> str:
  """What decides the programs of a stage: two stages of which this is equal run the same, up to what changes neither memory nor work."""
  other = ('title', 'splits', 'calculator', 'part', 'count', 'stage', 'of', 'task')
  settings = {key: value for key, value in recipe['stages'][stage].items() if key not in other}
  if recipe['stages'][stage]['stage'] not in ('generate', 'evaluate'):
    settings['of'] = stage
  definitions = list(programs.roles_of(recipe, stage).values())
  settings.pop('roles', None)
  return json.dumps([settings, definitions], sort_keys=True, default=str)


def plan(recipe: Mapping[str, Any], where: chips.Slice, *, only: str | None = None, prompt: int = programs.PROMPT,
         say: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
  """{stages, shapes, ...} of a recipe on one slice. ValueError: a recipe or a stage without such steps."""
  if only is not None and only not in recipe['stages']:
    raise ValueError(f'--only: there is no stage {only!r}; there is {", ".join(recipe["stages"])}')
  chosen = [only] if only is not None else list(recipe['run'])
  kinds = [name for name in chosen if recipe['stages'][name]['stage'] in ('train', 'label', 'generate', 'evaluate')
           and (recipe['stages'][name].get('roles')) and not any('api' in role for role in programs.roles_of(recipe, name).values())]
  if not kinds:
    raise ValueError(f'{", ".join(chosen)}: no step for a chip; there is something to plan in train, label, generate and evaluate stages')
  groups: dict[str, list[str]] = {}
  for name in kinds:
    groups.setdefault(same(recipe, name), []).append(name)
  chip = None if where.chip is None else where.chip._asdict()
  out = dict(topology=where.name, chips=len(where.devices), chip=chip, prompt=prompt, stages=[])
  for names in groups.values():
    say(f'{where.name}: {", ".join(names)} ...')
    out['stages'].append(dict(names=names, rows=plan_stage(recipe, names[0], where, prompt=prompt)))
  origins = [programs.shape_of(definition)[2] for name in kinds for definition in programs.roles_of(recipe, name).values()]
  return {**out, 'shapes_from': list(dict.fromkeys(origins))}


def main(argv) -> int:
  """Exit code: 0 all fits, 3 something does not as it stands, 1 an error, 2 a wrong command."""
  if len(argv) > 1:
    print(f'unknown argument {argv[1]!r}; flags begin with --', file=sys.stderr)
    return 2
  logging.set_verbosity(logging.ERROR)
  try:
    recipe = main_lib.recipe()
    chips.prepare(_TOPOLOGY.value)
    made = []
    for name in _TOPOLOGY.value:
      where = chips.slice_of(name)
      say = lambda line: print(line, file=sys.stderr, flush=True)
      made.append(plan(recipe, where, only=main_lib.only(), prompt=_PROMPT.value, say=say))
      plan_table.show(made[-1])
      if _JSON.value:
        pathlib.Path(_JSON.value).write_text(json.dumps(made, indent=1) + '\n', encoding='utf-8')
    plan_table.explain(made)
    return 3 if any(row['fits'] is False and 'change' not in row for one in made for stage in one['stages'] for row in stage['rows']) else 0
  except KeyboardInterrupt:
    return 130
  except (ValueError, ImportError, OSError) as error:
    print(error, file=sys.stderr)
    return 1


def start():
  """What `python -m distill_jax.plan` does."""
  flags.mark_flags_as_required(['config', 'topology'])
  app.run(main, flags_parser=main_lib.parse_flags)


if __name__ == '__main__':
  start()
