"""The client of an API: a set number of requests in flight while work remains, retries, limits obeyed, errors that say what to do.

An event loop in its own thread keeps requests going while the stage writes parts; each answer is in the journal before anybody sees it.
"""
import asyncio
import collections
import contextlib
import email.utils
import queue
import random
import re
import socket
import threading
import time
from typing import Any, Callable, Iterator, Mapping, NamedTuple, Sequence

from distill_jax.stages import api
from distill_jax.stages.api_journal import Journal

CONCURRENCY, TRIES, TIMEOUT = 8, 10, 300.0     # requests in flight, attempts a request, seconds an attempt
FIRST, LONGEST = 0.5, 60.0                     # seconds before the second attempt, doubled up to the longest
PATIENCE = 900.0                               # longest Retry-After that is waited for
GRACE = 20.0                                   # seconds that requests in flight are waited for when the run is stopped
AGAIN = 'What was answered is kept: the same command asks only for the rest'


class Question(NamedTuple):
  """One question and the samples of it that no journal has."""
  key: str
  prompt: str
  samples: tuple[int, ...]


class Trouble(NamedTuple):
  """A failed attempt. again: whether another one can help; wait: seconds the server asks for; limited: by a rate limit."""
  what: str
  again: bool
  remedy: str
  wait: float | None = None
  limited: bool = False
  kind: type = RuntimeError


def ask(given: api.Service, sampling: api.Sampling, questions: Sequence[Question], journal: Journal, *, how: Mapping[str, Any], seed: int,
        say: Callable[[str], None]) -> Iterator[list[tuple[str, int, dict]]]:
  """Yields (key, sample, choice) of all questions, as they come, in batches; each stands in the journal, on the disk.

  how: concurrency, tries (attempts a request), timeout (seconds an attempt).
  RuntimeError or ConnectionError, after the answers in flight have been kept, when the server refuses or tries are used up.
  """
  if not questions:
    return
  for name, least in dict(concurrency=1, tries=1, timeout=0.01).items():
    if name in how and not (isinstance(how[name], (int, float)) and how[name] >= least):
      raise ValueError(f'how.{name}={how[name]!r}: a number, at least {least}')
  pump = _Pump(given, sampling, questions, journal, concurrency=how.get('concurrency', CONCURRENCY), tries=how.get('tries', TRIES),
               timeout=how.get('timeout', TIMEOUT), seed=seed)
  thread = threading.Thread(target=pump.run, name='api', daemon=True)
  thread.start()
  try:
    ended = False
    while not ended:
      batch = [pump.results.get()]
      with contextlib.suppress(queue.Empty):
        while True:
          batch.append(pump.results.get_nowait())
      journal.sync()
      for line in [one for one in batch if isinstance(one, str)]:
        say(line)
      if answered := [one for one in batch if isinstance(one, tuple)]:
        yield answered
      for error in [one for one in batch if isinstance(one, BaseException)]:
        raise error
      ended = None in batch
  finally:
    pump.stop()
    thread.join(0.5)
    if thread.is_alive():
      say(f'waiting up to {GRACE:.0f} s for the answers in flight, which may be paid for already')
      thread.join(GRACE)
    journal.close()


class _Pump:
  """The requests of one run. Everything but `run`, `stop` and `results` belongs to its event loop."""

  def __init__(self, given, sampling, questions, journal, *, concurrency, tries, timeout, seed):
    self.given, self.sampling, self.journal = given, sampling, journal
    self.concurrency, self.tries, self.timeout, self.seed = concurrency, tries, timeout, seed
    self.jobs = collections.deque(questions)
    self.results: queue.SimpleQueue = queue.SimpleQueue()
    self.most = given.n            # samples a request; None: as many as are wanted
    self.answered = self.retries = 0
    self.reached = False
    self.resume_at = self.said_at = 0.0
    self.error: Exception | None = None
    self.loop = self.stopping = None
    self.halted = False

  def run(self) -> None:
    """Asks everything; results end with None or the error."""
    try:
      asyncio.run(self._main())
      self.results.put(self.error)
    except BaseException as error:      # of this thread's own: the other one must hear of it
      self.results.put(error)

  def stop(self) -> None:
    """No request begins from here on; those in flight end. From any thread."""
    self.halted = True
    if self.loop is not None:
      with contextlib.suppress(RuntimeError):      # it has ended
        self.loop.call_soon_threadsafe(self.stopping.set)

  async def _main(self):
    import openai
    self.stopping = asyncio.Event()
    self.loop = asyncio.get_running_loop()
    if self.halted:
      return
    # retries are ours: the client's own do not know a broken answer, do not count, and do not hold back the other requests
    async with openai.AsyncOpenAI(api_key=self.given.key or 'none', base_url=self.given.url, max_retries=0, timeout=self.timeout) as client:
      await asyncio.gather(*(self._work(client) for _ in range(min(self.concurrency, sum(len(job.samples) for job in self.jobs)))))

  async def _work(self, client):
    try:
      while self.jobs and not self.stopping.is_set():
        job = self.jobs.popleft()
        if self.most and len(job.samples) > self.most:
          self._later(job, self.most)
          job = job._replace(samples=job.samples[:self.most])
        await self._request(client, job)
    except Exception as error:
      self.error = self.error or error
      self.stopping.set()

  def _later(self, job: Question, done: int):
    self.jobs.appendleft(job._replace(samples=job.samples[done:]))

  async def _request(self, client, job: Question):
    """One request until it is answered, or an error."""
    failures = retries = 0
    others = self.answered
    while await self._may_go():
      began = time.monotonic()
      try:
        async with asyncio.timeout(self.timeout):
          answer = await self._post(client, job)
      except Exception as error:
        trouble = _judge(error, self)
      else:
        self._keep(job, answer, time.monotonic() - began, retries)
        return
      if trouble.what.startswith(('HTTP 400', 'HTTP 422')) and len(job.samples) > 1:      # perhaps only of several samples at once
        self.most = 1
        self._later(job, 1)
        job = job._replace(samples=job.samples[:1])
        continue
      if trouble.limited and self.answered > others:      # the limit lets some through: this one's turn will come
        failures, others = 0, self.answered
      failures += 1
      if not trouble.again or failures >= self.tries:
        raise trouble.kind(_message(self.given, trouble, failures))
      retries += 1
      self.retries += 1
      await self._wait(trouble, failures)

  async def _post(self, client, job: Question) -> api.Answer:
    fields = api.body(self.given, self.sampling, job.prompt, key=job.key, samples=job.samples, seed=self.seed)
    if self.given.kind == 'chat':
      said, create = dict(messages=fields.pop('messages')), client.chat.completions.with_raw_response.create
    else:
      said, create = dict(prompt=fields.pop('prompt')), client.completions.with_raw_response.create
    raw = await create(model=fields.pop('model'), **said, extra_body=fields)
    self.reached = True
    self._obey(raw.headers)
    return api.read(raw.text, kind=self.given.kind)

  def _keep(self, job: Question, answer: api.Answer, seconds: float, retries: int):
    """To the journal, then to whoever waits. Samples that the server did not give are asked later, so many at a time as it gives."""
    got = min(len(answer.choices), len(job.samples))
    if got < len(job.samples):
      self.most = got
      self._later(job, got)
    self.journal.write(dict(
        request=job.key, samples=list(job.samples[:got]), choices=answer.choices[:got], input=answer.input, output=answer.output,
        seconds=round(seconds, 4), retries=retries, model=answer.model))
    self.answered += 1
    for sample, choice in zip(job.samples[:got], answer.choices):
      self.results.put((job.key, sample, choice))

  async def _may_go(self) -> bool:
    """Waits while a rate limit holds all requests back. False: the run stops."""
    while (left := self.resume_at - time.monotonic()) > 0 and not self.stopping.is_set():
      await self._sleep(left + random.uniform(0, min(left, 1.0)))
    return not self.stopping.is_set()

  async def _wait(self, trouble: Trouble, failures: int):
    """Before the next attempt: what the server asks for, of all requests; else twice as long each time, with jitter."""
    now = time.monotonic()
    if now - self.said_at > 30:
      self.said_at = now
      self.results.put(f'{self.given.named}: {trouble.what}; trying again ({self.retries} retries so far)')
    own = min(LONGEST, FIRST * 2 ** (failures - 1)) * random.uniform(0.5, 1)
    if trouble.wait is not None and trouble.limited:
      self.resume_at = max(self.resume_at, now + trouble.wait)
      own = own if trouble.wait < FIRST else 0.0      # 'retry after 0 s' is no leave to hammer
    await self._sleep(max(own, 0.0 if trouble.limited else trouble.wait or 0.0))

  async def _sleep(self, seconds: float):
    with contextlib.suppress(TimeoutError):
      await asyncio.wait_for(self.stopping.wait(), seconds)

  def _obey(self, headers: Mapping[str, str]):
    """Where the headers say that nothing is left of a limit, no request goes out before it is renewed."""
    for what in ('requests', 'tokens'):
      if headers.get(f'x-ratelimit-remaining-{what}') == '0':
        wait = _seconds(headers.get(f'x-ratelimit-reset-{what}', ''))
        self.resume_at = max(self.resume_at, time.monotonic() + min(wait, LONGEST))


def _seconds(text: str) -> float:
  """'1s', '6m0s', '20ms', '1.5' in seconds; 0 for anything else."""
  units = dict(h=3600, m=60, s=1, ms=1e-3)
  if re.fullmatch(r'(\d+(\.\d+)?(h|ms|m|s))+', text):
    return sum(float(number) * units[unit] for number, _, unit in re.findall(r'(\d+(\.\d+)?)(h|ms|m|s)', text))
  return float(text) if re.fullmatch(r'\d+(\.\d+)?', text) else 0.0


def _retry_after(headers: Mapping[str, str]) -> float | None:
  """Seconds of Retry-After, as a number or a date (RFC 9110, section 10.2.3), or of retry-after-ms."""
  if re.fullmatch(r'\d+(\.\d+)?', headers.get('retry-after-ms', '')):
    return float(headers['retry-after-ms']) / 1000
  text = headers.get('retry-after', '').strip()
  if re.fullmatch(r'\d+(\.\d+)?', text):
    return float(text)
  try:
    return max(email.utils.parsedate_to_datetime(text).timestamp() - time.time(), 0.0)
  except (TypeError, ValueError):
    return None


def _judge(error: Exception, pump: _Pump) -> Trouble:
  """What an attempt's exception means. One that is not of the server's or the network's making is raised again."""
  import openai
  given = pump.given
  if isinstance(error, openai.APIStatusError):
    pump.reached = True
    return _judge_status(error, given)
  if isinstance(error, (TimeoutError, openai.APITimeoutError)):
    return Trouble(f'no answer within {pump.timeout:g} s', True, 'Is the server alive? how.timeout= waits longer for an answer, '
                   'how.concurrency= asks for fewer at a time')
  if isinstance(error, openai.APIConnectionError):
    return _judge_connection(error, pump.reached)
  if isinstance(error, api.Broken):
    return Trouble(str(error), True, 'Look at the log of the server; is base_url= right (it usually ends in /v1), and '
                   f'kind={given.kind!r} what it speaks?')
  raise error


def _judge_connection(error: Exception, reached: bool) -> Trouble:
  chain, causes = error, []
  while chain is not None and len(causes) < 20:
    causes += getattr(chain, 'exceptions', [chain])      # a group of exceptions: one an address
    chain = chain.__cause__ or chain.__context__
  if any(isinstance(cause, socket.gaierror) for cause in causes):
    return Trouble('its host name is not known', reached, 'Look at base_url=, and at the network', kind=ConnectionError)
  if any(isinstance(cause, ConnectionRefusedError) for cause in causes):
    return Trouble('nobody listens there (connection refused)', reached, 'Start the server, or look at the port in base_url=',
                   kind=ConnectionError)
  why = next((str(cause) for cause in causes[1:] if str(cause)), type(error).__name__)
  return Trouble(f'the connection broke ({why[:200]})', True, 'Look at the log of the server, and at the network', kind=ConnectionError)


def _judge_status(error, given: api.Service) -> Trouble:
  status, wait, said = error.status_code, _retry_after(error.response.headers), _said(error, given)
  what = f'HTTP {status}{": " if said else ""}{said}'
  if status in (401, 403):
    there = 'is set' if given.key else 'is not set'
    return Trouble(what, False, f'The server refuses the key, which is read from the environment variable {given.key_env}; '
                   f'that one {there}. '
                   'Set it to a key of this server, or name another variable with key_env=')
  if status == 404:
    return Trouble(what, False, f'Does the server know the model {given.model!r} (model=), does base_url= end as it wants '
                   f'(usually in /v1), and does it speak kind={given.kind!r}? GET {given.url}/models lists its models')
  if status == 429 and getattr(error, 'code', None) == 'insufficient_quota':
    return Trouble(what, False, 'The account has no credit left: add some')
  if wait is not None and wait > PATIENCE:
    return Trouble(f'{what}; it asks to wait {wait / 60:.0f} minutes', False, 'Run the same command again then')
  if status == 429:
    return Trouble(what, True, 'It limits the rate: ask for fewer at a time with how.concurrency=, or try later', wait, limited=True)
  if status in (408, 409, 425) or status >= 500:
    return Trouble(what, True, 'Look at the log or the status page of the server', wait, limited=status == 503 and wait is not None)
  return Trouble(what, False, "The server refuses the request as it is: omit=('seed', 'logprobs') leaves such fields out, "
                 "extra= adds others, limit='max_completion_tokens' names the limit as newer models want it; a prompt may also be too long for it")


def _said(error, given: api.Service) -> str:
  """The server's own words, short, without the key should they repeat it."""
  inner = error.body
  while isinstance(inner, Mapping) and (inner.get('error') or inner.get('message') or inner.get('detail')):
    inner = inner.get('error') or inner.get('message') or inner.get('detail')
  text = ' '.join(str(inner if inner else error.response.text).split())
  return (text.replace(given.key, '(the key)') if given.key else text)[:300]


def _message(given: api.Service, trouble: Trouble, failures: int) -> str:
  times = f', {failures} times in a row' if failures > 1 else ''
  return f'API {given.named}: {trouble.what}{times}. {trouble.remedy}. {AGAIN}.'
