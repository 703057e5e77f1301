"""Roles behind an API: requests, the number in flight, retries, the journal, errors, and the key that stands nowhere."""
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

from hypothesis import given, settings as effort, strategies as st
import numpy as np
import pytest

pytest.importorskip('openai', reason="pip install 'distill_jax[api]'")

import api_stub  # noqa: E402
from distill_jax.core import interrupt, marks  # noqa: E402
from distill_jax.stages import CHECKS, FORECASTS, api, api_client, api_journal, records, writers  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
TASK = dict(task='gsm8k', source='bundled', counts=dict(train=6, dev=3, test=3, test_range=3, test_family=3))
KEY = 'sk-proj-very/secret+0123456789'
NOWHERE = 'http://127.0.0.1:9/v1'


@pytest.fixture
def stub(monkeypatch):
  """A server that answers; waits between attempts are short, and the key is in the environment."""
  monkeypatch.setattr(api_client, 'FIRST', 0.01)
  monkeypatch.setattr(api_client, 'LONGEST', 0.02)
  monkeypatch.setenv('OPENAI_API_KEY', KEY)
  monkeypatch.delenv('OPENAI_BASE_URL', raising=False)
  server = api_stub.Stub()
  yield server
  server.close()


def role(stub, **more):
  return dict(api={**dict(base_url=stub if isinstance(stub, str) else stub.url, model='big', kind='chat'), **more})


@pytest.fixture
def write(call):
  """write(role, name='generate', **keywords) -> summary."""
  def run(teacher, name='generate', **keywords):
    usual = dict(roles=dict(teacher=teacher), task=TASK, samples=2, part=4, how=dict(concurrency=4, tries=3, timeout=5))
    return call('generate', name, **{**usual, **keywords})
  run.out = call.out
  return run


def entries(directory):
  lines = [json.loads(line) for path in sorted(directory.glob('journal-*.jsonl')) for line in path.read_text().splitlines()]
  return [line for line in lines if 'request' in line]


@pytest.mark.parametrize('kind', ['chat', 'completions'])
def test_texts_are_those_of_the_server(write, stub, kind):
  """Questions in order, samples by index, tokens and log-probabilities as the server said; cost by price."""
  more = dict(system='Be brief.', template='Q: {prompt}A:') if kind == 'chat' else dict(template='Q: {prompt}A:')
  summary = write(role(stub, kind=kind, price=dict(input=2.0, output=10.0), **more), stop=['\n\n'], top_p=0.9, top_k=40, temperature=0.5,
                  max_new_tokens=99)
  rows, task = records.read(write.out('generate')), records.make_task(TASK)
  examples = list(task.examples('train'))
  assert [(r['id'], r['sample'], r['prompt']) for r in rows] == [(e['id'], n, task.prompt(e)) for e in examples for n in range(2)]
  sent = {}
  for fields in stub.requests:
    prompt = fields['messages'][1]['content'] if kind == 'chat' else fields['prompt']
    assert prompt.startswith('Q: ') and prompt.endswith('A:')
    assert {name: fields[name] for name in ('model', 'n', 'max_tokens', 'temperature', 'top_p', 'top_k', 'stop')} == dict(
        model='big', n=2, max_tokens=99, temperature=0.5, top_p=0.9, top_k=40, stop=['\n\n'])
    assert (fields['messages'][0] == dict(role='system', content='Be brief.')) if kind == 'chat' else 'messages' not in fields
    sent[prompt[3:-2]] = fields
  assert len(sent) == len(stub.requests) == 6 and len({fields['seed'] for fields in sent.values()}) == 6
  for row in rows:
    fields = sent[row['prompt']]
    assert row['completion'] == api_stub.text_of(f'Q: {row["prompt"]}A:', fields['seed'], row['sample'])
    assert row['tokens'] == 3 and row['logp'] == pytest.approx(3 * api_stub.LOGP) and row['finished']
  said = summary['api']
  assert (said['requests'], said['retries'], said['reused'], said['input_tokens'], said['output_tokens']) == (6, 0, 0, 60, 36)
  assert said['cost'] == pytest.approx((60 * 2 + 36 * 10) / 1e6) and said['served'] == ['big-2026'] and said['latency_median'] > 0
  assert summary['tokens'] == 36 and 'big at http://127.0.0.1' in summary['teacher']


@pytest.mark.parametrize('server', ['ignores n', 'refuses n', 'is told not to'])
def test_samples_without_n(write, stub, server):
  """Where a server gives one text a request the others are asked for one by one; each has its own seed; the figures are right."""
  stub.act = {'ignores n': lambda number, fields: dict(takes_n=False), 'is told not to': lambda number, fields: None,
              'refuses n': lambda number, fields: api_stub.error(400, 'n must be 1') if fields.get('n', 1) > 1 else None}[server]
  summary = write(role(stub, **(dict(n=1) if server == 'is told not to' else {})), samples=3)
  rows = records.read(write.out('generate'))
  assert len(rows) == 18 and len({r['completion'] for r in rows}) == 18
  answered = [fields for fields in stub.requests if server != 'refuses n' or 'n' not in fields]
  assert len(answered) == 18 == summary['api']['requests'] and len({fields['seed'] for fields in answered}) == 18
  assert summary['tokens'] == summary['api']['output_tokens'] == 54
  assert len(stub.requests) - len(answered) <= 4, 'only what was in flight asked for several'


def test_a_server_that_says_little(write, stub):
  """No log-probabilities: NaN, and the request's tokens shared out; no usage: said in the figures."""
  stub.act = lambda number, fields: dict(logprobs=False)
  summary = write(role(stub))
  rows = records.read(write.out('generate'))
  assert all(np.isnan(row['logp']) for row in rows) and summary['tokens'] == 36 and {row['tokens'] for row in rows} == {3}
  stub.act = lambda number, fields: dict(logprobs=False, usage=False)
  assert write(role(stub), 'silent')['api']['without_usage'] == 6


def test_omit_and_extra(write, stub):
  write(role(stub, omit=('seed', 'logprobs', 'temperature'), extra=dict(reasoning_effort='low'), limit='max_completion_tokens'), count=1)
  assert set(stub.requests[0]) == {'model', 'messages', 'n', 'max_completion_tokens', 'reasoning_effort'}


@effort(max_examples=60, deadline=None)
@given(lengths=st.lists(st.integers(0, 40), min_size=1, max_size=6), total=st.integers(0, 500))
def test_tokens_shared_out_are_all_there(lengths, total):
  body = dict(choices=[dict(index=i, text='x' * length, finish_reason='stop') for i, length in enumerate(lengths)],
              usage=dict(prompt_tokens=1, completion_tokens=total))
  answer = api.read(json.dumps(body), kind='completions')
  assert sum(choice['tokens'] for choice in answer.choices) == total and min(choice['tokens'] for choice in answer.choices) >= 0


def test_the_number_in_flight_is_the_limit_while_work_remains(write, stub):
  """Seen by the server, under random latencies, over many parts: at the limit but for the moments from an answer to the next request."""
  latency = np.random.default_rng(0).uniform(0.3, 1.1, 1000)
  stub.act = lambda number, fields: float(latency[number])
  task = {**TASK, 'counts': {**TASK['counts'], 'train': 56}}
  write(role(stub), task=task, samples=1, part=7, how=dict(concurrency=8))
  times, counts = map(np.asarray, zip(*stub.flights))
  assert counts.max() == 8 and len(stub.requests) == 56
  arrivals = np.flatnonzero(np.diff(counts, prepend=0) > 0)
  first, last = arrivals[7], arrivals[-1]      # from when all are at work until the last request begins
  spans = np.diff(times[first:last + 1])
  busy = float((counts[first:last] * spans).sum() / spans.sum())
  print(f'in flight: {busy:.3f} of 8 on average, at the limit {100 * spans[counts[first:last] == 8].sum() / spans.sum():.1f} % of the time')
  assert busy > 6.8, 'waiting at the end of each part would be under 6'


def test_retry_after_holds_all_requests_back(write, stub):
  told = []

  def act(number, fields):
    if number == 2:
      told.append(time.monotonic())
      return api_stub.error(429, 'slow down', {'Retry-After': '1'})
    return 0.02
  stub.act = act
  summary = write(role(stub), samples=1, part=2)
  begun = [at for (at, now), (_, before) in zip(stub.flights[1:], stub.flights) if now > before]
  assert not [at for at in begun if told[0] + 0.2 < at < told[0] + 1.0], 'nobody asks before'
  assert summary['api']['retries'] == 1 and summary['api']['requests'] == 6 and len(stub.requests) == 7


def test_headers_that_say_nothing_is_left(write, stub, monkeypatch):
  nothing_left = {'x-ratelimit-remaining-requests': '0', 'x-ratelimit-reset-requests': '400ms'}
  stub.act = lambda number, fields: dict(headers=nothing_left) if number == 0 else None
  monkeypatch.setattr(api_client, 'LONGEST', 60.0)
  began = time.monotonic()
  write(role(stub), samples=1, how=dict(concurrency=1))
  assert time.monotonic() - began > 0.4 and len(stub.requests) == 6


@pytest.mark.parametrize('text, seconds', [('6m0s', 360), ('1s', 1), ('20ms', 0.02), ('1m2.5s', 62.5), ('7', 7), ('', 0), ('soon', 0)])
def test_durations(text, seconds):
  assert api_client._seconds(text) == pytest.approx(seconds)


def test_retry_after_in_its_forms():
  assert api_client._retry_after({'retry-after': '3'}) == 3
  assert api_client._retry_after({'retry-after-ms': '250', 'retry-after': '3'}) == 0.25
  assert api_client._retry_after({'retry-after': 'Wed, 21 Oct 2015 07:28:00 GMT'}) == 0.0
  assert api_client._retry_after({'retry-after': 'later'}) is None and api_client._retry_after({}) is None


@pytest.mark.parametrize('kind', ['chat', 'completions'])
@pytest.mark.parametrize('trouble', [
    api_stub.error(500), api_stub.error(429), api_stub.error(503, headers={'Retry-After': '0.1'}), 'half', 'cut', 'empty', 'html'])
def test_trouble_that_passes(write, stub, trouble, kind):
  stub.act = lambda number, fields: trouble if number % 3 == 1 else None
  summary = write(role(stub, kind=kind), how=dict(concurrency=2, tries=5, timeout=5))
  assert len(records.read(write.out('generate'))) == 12 and summary['api']['requests'] == 6
  assert summary['api']['retries'] == len(stub.requests) - 6 > 0


# (what the server does from its third request on, attempts at a request, what the message must say)
ERRORS = dict(
    hang=('hang', 2, ['no answer within 0.3 s', 'how.timeout']),
    limited=(api_stub.error(429, 'slow down', {'Retry-After': '0.05'}), 3, ['HTTP 429: slow down', 'how.concurrency', 'in a row']),
    quota=(api_stub.error(429, 'pay first', code='insufficient_quota'), 1, ['pay first', 'no credit']),
    long=(api_stub.error(429, 'tomorrow', {'Retry-After': '7200'}), 1, ['asks to wait 120 minutes', 'then']),
    down=(api_stub.error(500, 'boom'), 3, ['HTTP 500: boom', 'in a row', 'log or the status page']),
    half=('half', 3, ['no whole JSON', '/v1', "kind='chat'"]),
    html=('html', 3, ["begin with '<html>hello'"]),
    cut=('cut', 3, ['the connection broke', 'log of the server']),
    empty=('empty', 3, ['without choices']),
    key=(api_stub.error(401, f'Incorrect API key provided: {KEY}.'), 1, ['HTTP 401', 'OPENAI_API_KEY', 'is set', '(the key)']),
    forbidden=(api_stub.error(403), 1, ['HTTP 403', 'refuses the key']),
    model=(api_stub.error(404, 'The model `big` does not exist'), 1, ["HTTP 404: The model `big` does not exist", 'model=', '/models']),
    request=(api_stub.error(400, 'seed is not supported'), 1, ['seed is not supported', 'omit=', 'extra=']))


@pytest.mark.parametrize('name', ERRORS)
def test_trouble_that_stays(write, stub, name, tmp_path):
  """One message with the remedy; as many attempts as make sense; what was answered is kept, and the same call asks for the rest only."""
  trouble, attempts, words = ERRORS[name]
  stub.act = lambda number, fields: trouble if number >= 2 else None
  how = dict(concurrency=1, tries=attempts if attempts > 1 else 3, timeout=0.3 if name == 'hang' else 5)
  with pytest.raises((RuntimeError, ConnectionError)) as error:
    write(role(stub), samples=1, how=how)
  message = str(error.value)
  assert not [word for word in words if word not in message], message
  assert '\n' not in message and KEY not in message and 'What was answered is kept' in message
  assert len(stub.requests) == 2 + attempts and len(entries(write.out('generate'))) == 2
  stub.act = lambda number, fields: None
  answered = list(stub.answered)
  summary = write(role(stub), samples=1, how=how)
  assert summary['api']['requests'] == 6 and summary['api']['reused'] == 2
  later = stub.answered[len(answered):]
  assert len(later) == 4 and not [fields for fields in later if fields in answered]


def test_a_limit_that_lets_some_through_is_waited_for(write, stub):
  """One question is refused for the rate more often than `tries`, but never so often without another one being answered: the run goes on."""
  first, refused, answered = [], [], []

  def act(number, fields):
    prompt = fields['messages'][-1]['content']
    first[:] = first or [prompt]
    if prompt == first[0] and len(answered) < 5:
      refused.append(number)
      return api_stub.error(429, 'slow', {'Retry-After': '0.05'})
    while len(refused) < 2 * len(answered) + 2 and prompt != first[0]:
      time.sleep(0.002)
    answered.append(number)
  stub.act = act
  assert write(role(stub), how=dict(concurrency=2, tries=6))['api']['retries'] == len(refused) >= 10


def test_a_limit_that_names_no_time_is_not_hammered(write, stub, monkeypatch):
  monkeypatch.setattr(api_client, 'FIRST', 0.1)
  monkeypatch.setattr(api_client, 'LONGEST', 60.0)
  stub.act = lambda number, fields: api_stub.error(429, headers={'Retry-After': '0'})
  began = time.monotonic()
  with pytest.raises(RuntimeError, match='HTTP 429'):
    write(role(stub), count=1, how=dict(concurrency=1, tries=4))
  assert time.monotonic() - began > (0.1 + 0.2 + 0.4) / 2 and len(stub.requests) == 4


@pytest.mark.parametrize('how', [dict(concurrency=0), dict(tries=0), dict(timeout='long')])
def test_wrong_how(write, stub, how):
  with pytest.raises(ValueError, match=f'how.{next(iter(how))}='):
    write(role(stub), how=how)


@pytest.mark.parametrize('url, words', [(NOWHERE, 'nobody listens there'), ('http://no-such-host.invalid/v1', 'host name is not known')])
def test_a_server_that_is_not_there(write, stub, url, words):
  """At once, when it never answered."""
  with pytest.raises(ConnectionError, match=words):
    write(role(url), how=dict(concurrency=4, tries=100))


def test_a_server_that_goes_away_is_waited_for(write, stub, monkeypatch):
  """Once it has answered, a refused connection is tried again: a server that is started anew takes up the run."""
  port, again = stub.server_address[1], []
  monkeypatch.setattr(api_client, 'LONGEST', 0.2)

  def restart():
    stub.close()
    time.sleep(0.3)
    again.append(api_stub.Stub(port=port))

  def act(number, fields):
    if number == 3:
      threading.Thread(target=restart).start()
      return 'hang'
  stub.act = act
  summary = write(role(stub), samples=1, how=dict(concurrency=2, tries=30, timeout=5))
  again[0].close()
  assert summary['api']['requests'] == 6 and summary['api']['retries'] > 0 and len(again[0].requests) >= 2


def test_a_key_that_is_not_set_is_named(write, stub, monkeypatch):
  monkeypatch.delenv('OPENAI_API_KEY')
  stub.act = lambda number, fields: api_stub.error(401, 'who are you?')
  with pytest.raises(RuntimeError, match='environment variable OTHER_KEY; that one is not set'):
    write(role(stub, key_env='OTHER_KEY'))
  monkeypatch.setenv('OTHER_KEY', KEY)
  stub.act = lambda number, fields: None
  write(role(stub, key_env='OTHER_KEY'))
  assert stub.headers[-1]['authorization'] == f'Bearer {KEY}' and stub.headers[0]['authorization'] != f'Bearer {KEY}'


def test_the_journal_is_of_its_settings(write, stub):
  write(role(stub), samples=1)
  for old in write.out('generate').glob('part-*'):
    old.unlink()
  (write.out('generate') / 'manifest.json').unlink()
  with pytest.raises(ValueError, match=r'journal-.*holds answers to other requests \(sampling.temperature: 0.7 -> 0.9\).*paid for'):
    write(role(stub), samples=1, temperature=0.9)
  asked = len(stub.requests)
  assert write(role(stub, price=dict(input=1.0)), samples=1)['api']['reused'] == 6, 'price is no setting of the answers'
  assert len(stub.requests) == asked


def test_a_part_is_the_same_whoever_made_it(write, stub):
  """From the journal the same bytes come again; a line cut by a kill costs one request."""
  write(role(stub))
  before = {path.name: path.read_bytes() for path in write.out('generate').glob('part-*.arrow')}
  forget = lambda: [path.unlink() for path in (*write.out('generate').glob('part-*'), write.out('generate') / 'manifest.json')]
  forget()
  journal, = write.out('generate').glob('journal-*.jsonl')
  journal.write_bytes(journal.read_bytes()[:-25])
  asked = len(stub.requests)
  assert write(role(stub))['api']['reused'] == 10
  assert len(stub.requests) == asked + 1
  assert {path.name: path.read_bytes() for path in write.out('generate').glob('part-*.arrow')} == before and len(before) == 2
  forget()
  write(role(NOWHERE, base_url=stub.url))
  assert len(stub.requests) == asked + 1 and len(before) == 2


def test_half_a_question_is_asked_for_the_other_half(write, stub):
  """Some samples of a question are in the journal: only the others are asked for."""
  stub.act = lambda number, fields: dict(takes_n=False) if number < 2 else api_stub.error(500)
  with pytest.raises(RuntimeError, match='HTTP 500'):
    write(role(stub), how=dict(concurrency=1, tries=1))
  assert [entry['samples'] for entry in entries(write.out('generate'))] == [[0], [1]]
  stub.act = lambda number, fields: None
  write(role(stub))
  assert sorted(fields.get('n', 1) for fields in stub.requests[3:]) == [2] * 5


def test_a_signal_waits_for_the_answers_in_flight(write, stub, monkeypatch):
  """SIGTERM: no request begins from then on, those in flight are kept, and the stage ends as preempted."""
  def act(number, fields):
    if number == 3:
      os.kill(os.getpid(), signal.SIGTERM)
    return 0.3
  stub.act = act
  before = signal.getsignal(signal.SIGTERM)
  interrupt.listen()
  try:
    with pytest.raises(interrupt.Preempted):
      write(role(stub), samples=1, how=dict(concurrency=4))
  finally:
    signal.signal(signal.SIGTERM, before)
    interrupt.forget()
  assert len(stub.requests) == 4 == len(entries(write.out('generate')))


def test_evaluate(call, stub):
  """The teacher beside the arms: splits in one stream of requests, grades, the same rows again from the journal."""
  settings = dict(roles=dict(teacher=role(stub)), task=TASK, splits=('test', 'dev'), part=2, how=dict(concurrency=3), title='teacher')
  summary = call('evaluate', 'evaluate', **settings)
  assert set(summary['splits']) == {'test', 'dev'} and summary['parameters'] is None and summary['api']['requests'] == 6
  rows = [json.loads(line) for line in (call.out('evaluate') / 'predictions.jsonl').read_text().splitlines()]
  task = records.make_task(TASK)
  assert [(r['split'], r['id']) for r in rows] == [(split, e['id']) for split in ('test', 'dev') for e in task.examples(split)]
  assert {fields['temperature'] for fields in stub.requests} == {0.0} and all(r['texts'][0].endswith('#### 7') for r in rows)
  (call.out('evaluate') / 'dev' / 'part-00001-of-00002.arrow').unlink()
  call('evaluate', 'evaluate', **settings)
  assert len(stub.requests) == 6
  assert [json.loads(line) for line in (call.out('evaluate') / 'predictions.jsonl').read_text().splitlines()] == rows


@pytest.mark.parametrize('more, words', [
    (dict(model=''), 'model= is the name'), (dict(kind='chats'), "kind='chats'"), (dict(base_url='localhost:8000'), 'is no address'),
    (dict(base_url='http://me:word@x/v1'), 'only from the environment'), (dict(base_url='http://x/v1?key=1'), 'only from the environment'),
    (dict(template='Q'), r'no \{prompt\}'), (dict(kind='completions', system='x'), "put its text into template="),
    (dict(n=0), 'at least 1'), (dict(limit='tokens'), 'max_completion_tokens'), (dict(price=dict(cached=1)), "not 'cached'"),
    (dict(extra=dict(n=3)), 'cannot touch'), (dict(extra=dict(user=KEY)), 'key of OPENAI_API_KEY stands in the recipe'),
    (dict(api_key='x'), "takes no keyword 'api_key'")])
def test_wrong_settings_stop_before_anything_runs(monkeypatch, more, words):
  monkeypatch.setenv('OPENAI_API_KEY', KEY)
  with pytest.raises((ValueError, TypeError), match=words) as error:
    CHECKS['generate'](dict(task=TASK, roles=dict(teacher=role(NOWHERE, **more))))
  assert KEY not in str(error.value)


@pytest.mark.parametrize('stage, keywords, words', [
    ('label', {}, 'gives texts only, no weights and no logits.*without a label stage'), ('train', {}, 'gives texts only'),
    ('export', {}, 'gives texts only'), ('generate', dict(calculator=True), 'leave calculator= out'),
    ('evaluate', dict(cache_dtype='int8'), 'leave cache_dtype= out')])
def test_what_a_model_behind_an_api_cannot_do(stage, keywords, words):
  with pytest.raises(ValueError, match=words):
    CHECKS[stage](dict(roles=dict(teacher=role(NOWHERE)), **keywords))
  with pytest.raises(ValueError, match='beside api='):
    CHECKS['generate'](dict(roles=dict(teacher={**role(NOWHERE), 'tokenizer': 'bundled:teacher'})))


def test_without_the_package(write, monkeypatch):
  monkeypatch.setattr(writers.importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(RuntimeError, match=r"pip install 'distill_jax\[api\]'"):
    write(role(NOWHERE))


def test_the_address_from_the_environment_is_no_setting(monkeypatch):
  about = lambda **more: api.settings(api.service(model='big', **more), api.Sampling(1, 0.0, 1.0, 0, 8, ()), 0)
  monkeypatch.delenv('OPENAI_BASE_URL', raising=False)
  here = about()
  assert api.service(model='big').url == api.PUBLIC
  monkeypatch.setenv('OPENAI_BASE_URL', NOWHERE)
  assert about() == here and api.service(model='big').url == NOWHERE and about(base_url=NOWHERE) != here
  monkeypatch.setenv('OPENAI_API_KEY', KEY)
  described = marks.describe(role(NOWHERE, price=dict(input=1.0), key_env='OTHER'), where='x', digests=marks.Digests())
  assert described == dict(api=dict(base_url=NOWHERE, model='big', kind='chat')) and KEY not in json.dumps(about())


def test_forecasts_say_the_cost():
  teacher = role(NOWHERE, price=dict(input=1000.0, output=2000.0))
  made = FORECASTS['generate']({}, seed=0, how={}, task=TASK, roles=dict(teacher=teacher), samples=3)
  assert made['rows'] == 18 and made['tokens'] > 0 and 'for about' in made['notes'][0] and 'big at' in made['notes'][0]
  assert FORECASTS['evaluate']({}, seed=0, how={}, task=TASK, roles=dict(teacher=role(NOWHERE)), splits=('test', 'dev'))['rows'] == 6


def test_the_journal_says_when_the_disk_is_full(tmp_path, monkeypatch):
  journal = api_journal.Journal(tmp_path, dict(a=1))
  journal.write(dict(request='r', samples=[0], choices=[dict(text='x')]))

  class Full:
    def write(self, text):
      raise OSError(28, 'No space left on device')
  monkeypatch.setattr(journal, '_file', Full())
  with pytest.raises(OSError, match='the disk is full: the journal of the API'):
    journal.write(dict(request='s', samples=[0], choices=[dict(text='y')]))
  assert [entry['request'] for entry in api_journal.Journal(tmp_path, dict(a=1)).entries] == ['r']


# ---- through the command line

def command(workdir, url, *more):
  return [sys.executable, '-m', 'distill_jax.main', '--config=configs/gsm8k.py:tiny-api', f'--workdir={workdir}',
          f'--config.roles.teacher.api.base_url={url}', '--config.roles.teacher.api.model=big', *more]


def environment(**more):
  kept = {name: value for name, value in os.environ.items() if name not in ('XLA_FLAGS', 'OPENAI_BASE_URL')}
  return {**kept, 'JAX_PLATFORMS': 'cpu', **more}


def everything(directory):
  return {path: path.read_bytes() for path in directory.rglob('*') if path.is_file()}


def test_the_key_stands_nowhere(stub, tmp_path):
  """A run that is refused, by a server that repeats the key, and one that ends, with the client's own log on: the key is
  in no file and no output."""
  run = lambda: subprocess.run(
      command(tmp_path / 'w', stub.url, "--config.run=['generate', 'evaluate_teacher']", '--config.roles.teacher.api.price.output=1000.0',
              '--traceback'), cwd=ROOT, capture_output=True, text=True, timeout=120, env=environment(OPENAI_API_KEY=KEY, OPENAI_LOG='debug'))
  stub.act = lambda number, fields: api_stub.error(401, f'Incorrect API key: {KEY}') if number == 5 else None
  refused = run()
  assert refused.returncode == 1 and 'HTTP 401: Incorrect API key: (the key)' in refused.stderr
  assert 'same command continues' in refused.stderr
  ended = run()
  assert ended.returncode == 0, ended.stderr[-3000:]
  assert stub.headers[0]['authorization'] == f'Bearer {KEY}'
  written = everything(tmp_path)
  for secret in (KEY, KEY.split('-')[-1], json.dumps(KEY)[1:-1]):
    assert not [path for path, data in written.items() if secret.encode() in data]
    assert secret not in refused.stdout + refused.stderr + ended.stdout + ended.stderr
  report = (tmp_path / 'w' / 'report.html').read_text()
  assert 'Requests to the API' in report and 'big-2026' in report and 'evaluate_teacher' in report and 'in all.' in report
  assert len(stub.answered) == 8 + 4 and 'teacher' in ended.stdout


@pytest.mark.slow
def test_run_and_server_are_killed_and_nothing_is_paid_twice(tmp_path):
  """kill -9 of the server and of the run in the middle; the same command ends, and no answered request was made again."""
  log, stub_file = tmp_path / 'server.jsonl', pathlib.Path(api_stub.__file__)
  log.touch()
  with api_stub.Stub() as free:
    port = free.server_address[1]
    free.close()
  lines = lambda: sum(1 for line in log.read_text().splitlines())

  def serve():
    server = subprocess.Popen([sys.executable, str(stub_file), str(port), str(log), '0.2'], stdout=subprocess.PIPE, text=True)
    assert server.stdout.readline().startswith('http://127.0.0.1')
    return server

  def start():
    return subprocess.Popen(command(tmp_path / 'w', f'http://127.0.0.1:{port}/v1', '--config.tasks.gsm8k.counts.train=60',
                                    '--config.stages.generate.samples=3', '--config.roles.teacher.api.n=1',
                                    '--config.stages.generate.how.concurrency=4',
                                    "--config.run=['generate', 'evaluate_teacher']"),
                            cwd=ROOT, env=environment(OPENAI_API_KEY=KEY), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

  def until(count):
    deadline = time.monotonic() + 90
    while lines() < count:
      assert time.monotonic() < deadline and process.poll() is None
      time.sleep(0.02)
  server, process = serve(), start()
  until(30)
  server.kill()
  server.wait()
  time.sleep(1)
  server = serve()
  until(70)
  process.kill()
  process.communicate()
  time.sleep(0.5)      # what the server was answering when the run died
  known = lines()
  process = start()
  said = process.communicate(timeout=200)[0]
  server.kill()
  assert process.returncode == 0, said[-3000:]
  answered = [json.loads(line) for line in log.read_text().splitlines()]
  journal = entries(tmp_path / 'w' / 'generate')
  assert len(journal) == 180 and len(entries(tmp_path / 'w' / 'evaluate_teacher')) == 4
  seeds = [fields['seed'] for fields in answered]
  twice = len(seeds) - len(set(seeds))
  print(f'{len(answered)} requests answered for {len(journal) + 4} texts; {known} before the run was killed, {twice} then in flight asked again')
  assert twice <= 4 * 2, 'only what was in flight at the two kills'
  rows = records.read(tmp_path / 'w' / 'generate')
  assert len(rows) == 180 and len({(r['id'], r['sample']) for r in rows}) == 180
