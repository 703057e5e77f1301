"""Writers: who answers the questions of a stage, a model on the stage's mesh or one behind an API, in one form for both."""
import collections
import contextlib
import importlib.util
from typing import Any, Callable, Iterator, Mapping, NamedTuple, Sequence

import jax

from distill_jax.core import hosts, keys, marks, store
from distill_jax.decode import sample
from distill_jax.stages import api, api_client
from distill_jax.stages.api_journal import Journal
from distill_jax.stages.roles import load_roles, parameters

Part = tuple[Sequence[str], Sequence[str]]      # prompts, ids of their examples


class Writer(NamedTuple):
  """write(parts, progress) -> (name, texts) of each part, texts by prompt and sample as dict(text, tokens, logp, finished).

  progress(name, count): so many texts were written from that part on.  named: for the report.  fingerprints: for what is written.
  parameters: of the model, None where nobody says.  facts(): what a summary says of the writing, once it is done.
  """
  named: str
  fingerprints: Mapping[str, str]
  parameters: int | None
  write: Callable[[Mapping[Any, Part], Callable], Iterator[tuple[Any, list[list[dict]]]]]
  facts: Callable[[], dict[str, Any]]


def make(out, definition: Mapping[str, Any], share, how: Mapping[str, Any], *, name: str, seed: int, prompts: Sequence[str], log,
         settings: Mapping[str, Any]) -> Writer:
  """The Writer of a role. prompts: all there will be.  settings: samples, temperature, top_p, top_k, max_new_tokens, stop, cache_dtype,
  writer; prompt_tokens: most tokens of a prompt, None for any number."""
  settings = dict(settings)
  most = settings.pop('prompt_tokens', None)
  if 'api' in definition:
    if most is not None:
      raise ValueError('prompt_tokens: a prompt for an API is cut by nobody here; leave it out')
    return _service(out, definition, share, how, name=name, seed=seed, log=log, settings=settings)
  role = load_roles({name: definition}, share.mesh, how, seed=seed)[name]
  # rows wide enough for the longest prompt of all parts, so that every part runs in the same compiled shapes
  longest = sample.longest(role, prompts) if most is None else min(sample.longest(role, prompts), most)
  counts = collections.Counter(cut_prompts=0)

  def write(parts, progress):
    for part, (asked, ids) in parts.items():
      progress(part, 0)
      texts, stats = sample.write(role, role.params, asked, [keys.id_from_text(i) for i in ids], jax.random.key(seed),
                                  batch=how.get('batch', 64), length=longest, mesh=share.mesh, **settings)
      counts['cut_prompts'] += stats['cut_prompts']
      yield part, [[{**t, 'tokens': len(t['tokens'])} for t in several] for several in texts]

  source = definition.get('load', 'a fresh model')
  endless = f'the tokenizer of {source} has no end-of-text token: every text goes on to max_new_tokens, or to one of stop='
  facts = lambda: {**counts, **(dict(notes=[endless]) if role.text.eos_id is None else {})}
  fingerprints = {name: role.fingerprint, 'tokenizer': role.text.fingerprint}
  return Writer(f'{source} (fingerprint {role.fingerprint})', fingerprints, parameters(role), write, facts)


def check(definition: Mapping[str, Any], *, calculator: bool = False, cache_dtype: str | None = None) -> api.Service:
  """The Service of an API role. ValueError for what a model behind an API cannot do."""
  if more := [key for key in definition if key != 'api']:
    raise ValueError(f'role: beside api= there is nothing to say, got {more[0]!r}; settings of the API stand in api=dict(...)')
  given = api.service(**definition['api'])
  if calculator:
    raise ValueError(f'{given.named}: the calculator writes between the tokens of a text, which an API does not let it; '
                     'leave calculator= out')
  if cache_dtype is not None:
    raise ValueError(f'{given.named}: the decoding cache is the server\'s own; leave cache_dtype= out')
  return given


def _service(out, definition, share, how, *, name, seed, log, settings) -> Writer:
  if importlib.util.find_spec('openai') is None:
    raise RuntimeError("a role behind an API needs the package openai: pip install 'distill_jax[api]' (or pip install openai)")
  given = check(definition, calculator=settings['writer'] is not None, cache_dtype=settings['cache_dtype'])
  sampling = api.Sampling(*(settings[name] for name in api.Sampling._fields))
  about = api.settings(given, sampling, seed)
  reused = collections.Counter()

  def write(parts, progress):
    if not share.writes:
      return
    journal = Journal(out, about)
    numbers = range(sampling.samples)
    wanted = {part: [api.request_key(journal.mark, prompt, i) for prompt, i in zip(*asked)] for part, asked in parts.items()}
    asked_for = {key: prompt for part, (prompts, _) in parts.items() for key, prompt in zip(wanted[part], prompts)}
    found = {(key, n): journal.answers[key, n] for key in asked_for for n in numbers if (key, n) in journal.answers}
    reused['answers'] = len(found)
    if found:
      log.say(f'{len(found):,} answers of {given.named} are in the journal and are not asked again')
    questions = [api_client.Question(key, prompt, missing) for key, prompt in asked_for.items()
                 if (missing := tuple(n for n in numbers if (key, n) not in found))]
    left = {part: {(key, n) for key in keys_P for n in numbers} - found.keys() for part, keys_P in wanted.items()}
    places = collections.defaultdict(list)      # a question may stand in several parts; it is asked once
    for part, keys_P in wanted.items():
      for key in dict.fromkeys(keys_P):
        places[key].append(part)
    first = next(iter(parts), None)
    whole = lambda part: [[_text(found[key, n]) for n in numbers] for key in wanted[part]]
    try:
      yield from [(part, whole(part)) for part in parts if not left[part]]
      with contextlib.closing(api_client.ask(given, sampling, questions, journal, how=how, seed=seed, say=log.say)) as batches:
        done = reused['answers']
        for batch in batches:
          done += len(batch)
          progress(first, done)
          for key, n, choice in batch:
            found[key, n] = choice
            for part in places[key]:
              left[part].discard((key, n))
          for part in dict.fromkeys(part for key, _, _ in batch for part in places[key]):
            if not left[part]:
              store.push(journal.path)
              yield part, whole(part)
    finally:
      if journal.path is not None:
        store.push(journal.path)

  def facts():
    if hosts.lead():
      store.pull(out)
    return dict(api=api.facts(given, Journal(out, about).entries, reused=reused['answers']))

  return Writer(f'{given.named} (API, {given.kind})', {name: marks.fingerprint(about)}, None, write, facts)


def _text(choice: Mapping[str, Any]) -> dict[str, Any]:
  """A choice as a text. What the server does not say of its log-probability is NaN."""
  return dict(text=choice['text'], tokens=int(choice['tokens'] or 0), logp=float('nan') if choice['logp'] is None else choice['logp'],
              finished=choice['reason'] not in ('length', 'content_filter'))
