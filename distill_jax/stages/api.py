"""A role behind an API: its settings, and its requests and answers in the OpenAI-compatible protocol (chat, or plain completions)."""
import json
import math
import os
from typing import Any, Mapping, NamedTuple, Sequence
import urllib.parse

from distill_jax.core import keys, marks

KINDS = dict(chat='/chat/completions', completions='/completions')
PUBLIC = 'https://api.openai.com/v1'
LIMITS = ('max_tokens', 'max_completion_tokens')


class Service(NamedTuple):
  """Who is asked, and how; see `service`."""
  model: str
  base_url: str | None
  kind: str
  key_env: str
  system: str
  template: str
  n: int | None
  limit: str
  omit: Sequence[str]
  extra: Mapping[str, Any]
  price: Mapping[str, float]

  @property
  def url(self) -> str:
    """Where requests go."""
    return self.base_url or os.environ.get('OPENAI_BASE_URL') or PUBLIC

  @property
  def named(self) -> str:
    return f'{self.model} at {self.url}'

  @property
  def key(self) -> str | None:
    """The secret, straight from the environment, kept nowhere."""
    return os.environ.get(self.key_env, '').strip() or None


class Sampling(NamedTuple):
  """What is asked of every question."""
  samples: int
  temperature: float
  top_p: float
  top_k: int
  max_new_tokens: int
  stop: Sequence[str]


class Broken(ValueError):
  """An answer that holds no text: cut short, no JSON, no choices. Worth asking again."""


def service(*, model, base_url=None, kind='chat', key_env='OPENAI_API_KEY', system='', template='{prompt}', n=None, limit='max_tokens',
            omit=(), extra=None, price=None) -> Service:
  """The Service of a role api=dict(...).

  base_url: up to and with /v1; default: the environment variable OPENAI_BASE_URL (then the address is no part of the
  fingerprint), else OpenAI's.
  kind: 'chat' or 'completions'.  key_env: the environment variable that holds the key; a server without keys needs none.
  system: the system message (chat).  template: what is sent, with {prompt} where the task's prompt goes (few-shot text, instructions).
  n: most samples that one request asks for (default: all; where a server gives fewer, the rest is asked one by one).
  limit: the field of the longest answer.  omit: fields that this server refuses (seed, logprobs, temperature ...).  extra: more fields.
  price: dict(input=, output=), of a million tokens.
  """
  where = 'role: api: '
  if not isinstance(model, str) or not model:
    raise ValueError(f'{where}model= is the name the server knows the model by, got {model!r}')
  if kind not in KINDS:
    raise ValueError(f'{where}kind={kind!r}: one of {", ".join(KINDS)}')
  if base_url:
    parts = urllib.parse.urlsplit(base_url)
    if parts.username or parts.password or parts.query:
      raise ValueError(f'{where}base_url= holds a password or a query; a key comes only from the environment (key_env=)')
    if parts.scheme not in ('http', 'https') or not parts.netloc:
      raise ValueError(f"{where}base_url={base_url!r} is no address; it looks like 'http://127.0.0.1:8000/v1'")
  if '{prompt}' not in template:
    raise ValueError(f'{where}template= has no {{prompt}}, so the question would not be asked: {template[:80]!r}')
  if system and kind != 'chat':
    raise ValueError(f"{where}system= is a message of kind='chat'; put its text into template=")
  if limit not in LIMITS:
    raise ValueError(f'{where}limit={limit!r}: one of {", ".join(LIMITS)}')
  if n is not None and (type(n) is not int or n < 1):
    raise ValueError(f'{where}n={n!r}: a whole number of samples a request, at least 1')
  if unknown := [name for name in price or {} if name not in ('input', 'output')]:
    raise TypeError(f'{where}price takes input and output (of a million tokens), not {unknown[0]!r}')
  if any(name in ('model', 'messages', 'prompt', 'n', 'stream') for name in (*omit, *(extra or {}))):
    raise ValueError(f'{where}omit= and extra= cannot touch model, messages, prompt, n or stream')
  made = Service(model, (base_url or '').rstrip('/') or None, kind, key_env, system, template, n, limit, tuple(omit),
                 dict(extra or {}), dict(price or {}))
  if made.key and made.key in json.dumps([made._asdict()], ensure_ascii=False):
    raise ValueError(f'{where}the key of {key_env} stands in the recipe; take it out: it is read from the environment only')
  return made


def settings(given: Service, sampling: Sampling, seed: int) -> dict[str, Any]:
  """What answers depend on, as plain data: no key, no price."""
  about = {name: value for name, value in given._asdict().items() if name not in marks.ASIDE}
  return json.loads(json.dumps(dict(api=about, sampling=sampling._asdict(), seed=seed)))


def request_key(settings_mark: str, prompt: str, name: str) -> str:
  """The content hash of what is asked about one question; with a sample number it names one answer for ever."""
  return keys.id_text(keys.content_id(settings_mark, prompt, name))


def body(given: Service, sampling: Sampling, prompt: str, *, key: str, samples: Sequence[int], seed: int) -> dict[str, Any]:
  """The fields of a request for these samples of a question. Its seed follows the question and the first sample number."""
  said = given.template.replace('{prompt}', prompt)
  fields: dict[str, Any] = dict(model=given.model)
  if given.kind == 'chat':
    fields['messages'] = [*([dict(role='system', content=given.system)] if given.system else []), dict(role='user', content=said)]
  else:
    fields['prompt'] = said
  fields.update({given.limit: sampling.max_new_tokens, 'temperature': float(sampling.temperature),
                 'logprobs': True if given.kind == 'chat' else 1, 'seed': int(keys.content_id(seed, key, samples[0])[0]) & 0x7fffffff})
  if sampling.top_p != 1.0:
    fields['top_p'] = float(sampling.top_p)
  if sampling.top_k:
    fields['top_k'] = int(sampling.top_k)
  if sampling.stop:
    fields['stop'] = list(sampling.stop)
  if len(samples) > 1:
    fields['n'] = len(samples)
  return {**{name: value for name, value in fields.items() if name not in given.omit}, **given.extra}


class Answer(NamedTuple):
  """What one request brought. choices: dict(text, tokens, logp or None, reason). input, output: tokens paid for, None: not said."""
  choices: list[dict[str, Any]]
  input: int | None
  output: int | None
  model: str


def read(text: str, *, kind: str) -> Answer:
  """The Answer in a body. Broken: there is none."""
  try:
    said = json.loads(text)
  except json.JSONDecodeError:
    raise Broken(f'an answer that is no whole JSON ({len(text)} characters, they begin with {text[:60]!r})') from None
  if not isinstance(said, Mapping):
    raise Broken(f'an answer that is no JSON object but {type(said).__name__}')
  if said.get('error'):
    raise Broken(f'an error inside an answer: {json.dumps(said["error"], ensure_ascii=False)[:200]}')
  choices = said.get('choices')
  if not isinstance(choices, list) or not choices:
    raise Broken('an answer without choices')
  try:
    made = [_choice(choice, kind) for choice in sorted(choices, key=lambda c: c.get('index') or 0)]
    usage = said.get('usage') or {}
    answer = Answer(made, usage.get('prompt_tokens'), usage.get('completion_tokens'), str(said.get('model') or ''))
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    raise Broken(f'an answer of another form than kind={kind!r} has ({type(error).__name__}: {error})') from None
  _share_out(answer)
  return answer


def _choice(choice: Mapping[str, Any], kind: str) -> dict[str, Any]:
  logprobs = choice.get('logprobs') or {}
  if kind == 'chat':
    text = choice['message'].get('content') or choice['message'].get('refusal') or ''
    logps = [token['logprob'] for token in logprobs.get('content') or ()]
  else:
    text, logps = choice['text'] or '', list(logprobs.get('token_logprobs') or ())
  if not isinstance(text, str):
    raise TypeError(f'its text is {type(text).__name__}')
  whole = bool(logps) and None not in logps
  return dict(text=text, tokens=len(logps) if whole else None, logp=math.fsum(logps) if whole else None, reason=choice.get('finish_reason'))


def _share_out(answer: Answer) -> None:
  """Tokens of choices without log-probabilities: the request's, in proportion to their characters."""
  if all(choice['tokens'] is not None for choice in answer.choices):
    return
  total, sizes = answer.output or 0, [len(choice['text']) + 1 for choice in answer.choices]
  ends = [round(total * sum(sizes[:i]) / sum(sizes)) for i in range(len(sizes) + 1)]
  for choice, begin, end in zip(answer.choices, ends, ends[1:]):
    choice['tokens'] = end - begin


def facts(given: Service, entries: Sequence[Mapping[str, Any]], *, reused: int = 0) -> dict[str, Any]:
  """What the requests of a stage came to, over all its runs, from its journals."""
  sums = {name: sum(entry[name] or 0 for entry in entries) for name in ('input', 'output')}
  seconds = sorted(entry['seconds'] for entry in entries)
  out = dict(model=given.model, url=given.url, kind=given.kind, served=sorted({entry['model'] for entry in entries if entry['model']}),
             requests=len(entries), retries=sum(entry['retries'] for entry in entries), reused=reused, input_tokens=sums['input'],
             output_tokens=sums['output'], latency_median=seconds[len(seconds) // 2] if seconds else None,
             without_usage=sum(entry['input'] is None for entry in entries))
  return {**out, 'cost': cost(given, sums['input'], sums['output'])}


def cost(given: Service, input_tokens: float, output_tokens: float) -> float | None:
  """By price=, in its unit; None where no price is given."""
  if not any(given.price.values()):
    return None
  return (input_tokens * given.price.get('input', 0) + output_tokens * given.price.get('output', 0)) / 1e6
