"""Seeds: one recipe run with several seeds, each in its own directory, then one table with intervals."""
import pathlib
from typing import Any, Mapping

from distill_jax import pipeline
from distill_jax import results
from distill_jax import runs
from distill_jax import tables
from distill_jax.core import hosts, marks


def run(recipe: Mapping[str, Any], workdir: pathlib.Path, sources: pipeline.Sources, *, count: int) -> list[pathlib.Path]:
  """Runs seeds seed .. seed + count - 1 in workdir/seed-0 .. and returns these; all are checked before the first one begins."""
  planned = []
  digests = marks.Digests(workdir / '.digests.json')
  for number in range(count):
    own = {**recipe, 'seed': recipe.get('seed', 0) + number}
    directory = workdir / f'seed-{number}'
    steps = pipeline.plan(own, directory, sources, digests=digests)
    pipeline.stop_on_differences(list(steps.values()), directory)
    planned.append((own, steps, directory))
  if hosts.lead():
    workdir.mkdir(parents=True, exist_ok=True)
  for number, (own, steps, directory) in enumerate(planned):
    if hosts.lead():
      print(f'--- seed {own["seed"]} ({number + 1} of {count}) in {directory}')
    runs.run(own, steps, directory, sources, cache=workdir / '.cache' / 'jax')
  if not hosts.lead():
    return []
  directories = [directory for *_, directory in planned]
  rows, compared = results.over_seeds(directories, recipe), results.compare(directories, recipe)
  marks.write_json(workdir / 'seeds.json', {'rows': rows, 'compare': [
      {**one._asdict(), 'pairs': one.pairs._asdict(), 'p': one.pairs.p, 'verdict': one.verdict} for one in compared]})
  tables.seeds(rows, compared, count)
  print(f'figures: {workdir / "seeds.json"}')
  return directories
