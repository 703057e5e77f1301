"""A server that speaks the OpenAI-compatible protocol and misbehaves as told, in a thread or as a program:
`python api_stub.py PORT LOG SECONDS`.
"""
import hashlib
import http.server
import json
import sys
import threading
import time

LOGP = -0.25


def text_of(prompt: str, seed: int, index: int) -> str:
  """What the stub writes: the same for the same request."""
  return f'thought {hashlib.sha256(f"{prompt} {seed} {index}".encode()).hexdigest()[:10]}\n#### 7'


def answer(fields, *, logprobs=True, usage=True, takes_n=True):
  """The body of an answer in the real schema."""
  chat, prompt = 'messages' in fields, fields['messages'][-1]['content'] if 'messages' in fields else fields['prompt']
  choices, written = [], 0
  for index in range(fields.get('n', 1) if takes_n else 1):
    text = text_of(prompt, fields.get('seed', 0), index)
    words = text.split(' ')
    written += len(words)
    choice = dict(index=index, finish_reason='stop', logprobs=None)
    if logprobs and fields.get('logprobs'):
      choice['logprobs'] = dict(content=[dict(token=w, logprob=LOGP, bytes=None, top_logprobs=[]) for w in words]) if chat else dict(
          tokens=words, token_logprobs=[LOGP] * len(words), top_logprobs=[{w: LOGP} for w in words], text_offset=[0] * len(words))
    choice.update(dict(message=dict(role='assistant', content=text, refusal=None)) if chat else dict(text=text))
    choices.insert(0, choice)      # not in order: the index counts
  body = dict(id='x', object='chat.completion' if chat else 'text_completion', created=1, model=fields['model'] + '-2026', choices=choices)
  if usage:
    body['usage'] = dict(prompt_tokens=10, completion_tokens=written, total_tokens=10 + written)
  return body


def error(status, message='no', headers=(), code=None):
  """An action: an error in the real schema."""
  return dict(status=status, headers=dict(headers), body=json.dumps(dict(error=dict(message=message, type='error', param=None, code=code))))


class Stub(http.server.ThreadingHTTPServer):
  """act(number of the request, its fields) -> what to do: None (answer), seconds to wait before, dict(keywords of `answer`), error(...), or
  'hang', 'cut', 'half', 'empty', 'html'."""
  daemon_threads, request_queue_size, allow_reuse_address = True, 256, True

  def __init__(self, act=lambda number, fields: None, port=0, log=None):
    super().__init__(('127.0.0.1', port), _Handler)
    self.act, self.log, self.lock = act, log, threading.Lock()
    self.requests, self.headers, self.flights, self.answered = [], [], [], []
    self.now = 0
    self.ending = threading.Event()
    threading.Thread(target=self.serve_forever, kwargs=dict(poll_interval=0.02), daemon=True).start()

  @property
  def url(self):
    return f'http://127.0.0.1:{self.server_address[1]}/v1'

  def flight(self, change):
    with self.lock:
      self.now += change
      self.flights.append((time.monotonic(), self.now))

  def close(self):
    self.ending.set()
    self.shutdown()
    self.server_close()

  def handle_error(self, request, client_address):
    pass      # a client that is gone


class _Handler(http.server.BaseHTTPRequestHandler):
  protocol_version = 'HTTP/1.1'

  def log_message(self, *args):
    pass

  def do_POST(self):
    stub = self.server
    fields = json.loads(self.rfile.read(int(self.headers['content-length'])))
    if stub.ending.is_set():      # a connection from before
      self.close_connection = True
      return
    stub.flight(1)
    with stub.lock:
      number = len(stub.requests)
      stub.requests.append(fields)
      stub.headers.append({name.lower(): value for name, value in self.headers.items()})
    self._act(stub.act(number, fields), fields)

  def _act(self, action, fields):
    stub, status, headers, keywords = self.server, 200, {}, {}
    if action == 'hang':
      stub.ending.wait(60)
      stub.flight(-1)
      self.close_connection = True
      return
    if isinstance(action, (int, float)):
      time.sleep(action)
    if isinstance(action, dict) and 'status' in action:
      status, headers, body = action['status'], action['headers'], action['body']
    else:
      keywords = dict(action) if isinstance(action, dict) else {}
      headers = keywords.pop('headers', {})
      body = json.dumps(answer(fields, **keywords))
    broken = dict(half=body[:len(body) // 2], html='<html>hello', empty='{"choices": []}')
    body = broken.get(action, body) if isinstance(action, str) else body
    data = body.encode()
    self.send_response(status)
    for name, value in {'Content-Type': 'application/json', 'Content-Length': str(len(data) + 100 * (action == 'cut')), **headers}.items():
      self.send_header(name, value)
    self.end_headers()
    stub.flight(-1)      # before the client can know
    self.wfile.write(data)
    self.wfile.flush()
    if action == 'cut':
      self.close_connection = True
    elif status == 200 and action not in ('half', 'html', 'empty'):
      with stub.lock:
        stub.answered.append(fields)
        if stub.log is not None:
          stub.log.write(json.dumps(fields) + '\n')


def main(port, log, seconds):
  """Answers after so many seconds; writes every answered request to the log."""
  stub = Stub(lambda number, fields: seconds, port=port, log=open(log, 'a', encoding='utf-8', buffering=1))
  print(stub.url, flush=True)
  time.sleep(3600)


if __name__ == '__main__':
  main(int(sys.argv[1]), sys.argv[2], float(sys.argv[3]))
