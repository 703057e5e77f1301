"""A watch over the other processes of a run: when one is gone, all stop at once with a sentence, not in a collective that never ends.

Every process holds a connection to process 0. A connection that closes without a goodbye, or is silent for too long, is a process that
is gone; process 0 passes it on. What ends here has nothing to save: whole parts and checkpoints are on disk.
"""
import json
import os
import socket
import sys
import threading
from typing import Callable

from distill_jax.core.interrupt import AGAIN

BEAT = 5.0      # seconds between two signs of life
SILENCE = 45.0  # seconds of silence after which a process counts as gone


class Watch:
  """One process's side. end(text, code): called once, from a thread, when another process is gone."""

  def __init__(self, process: int, count: int, end: Callable[[str, int], None]):
    self.process, self.count, self.end = process, count, end
    self.name = f'process {process} ({socket.gethostname()})'
    self._over = threading.Event()
    self._links: dict[int, socket.socket] = {}
    self._lock = threading.Lock()

  def serve(self) -> int:
    """Process 0: listens, and returns the port."""
    server = socket.create_server(('', 0))
    threading.Thread(target=self._accept, args=(server,), daemon=True).start()
    return server.getsockname()[1]

  def join(self, host: str, port: int) -> None:
    """The others: connect to process 0."""
    link = socket.create_connection((host, port), timeout=60)
    self._links[0] = link
    self._send(link, dict(name=self.name, process=self.process))
    self._follow(link, 0, 'process 0')

  def leave(self, code: int) -> None:
    """Says goodbye: code 0 is the end of the run, AGAIN a preemption, others an error."""
    self._over.set()
    for link in list(self._links.values()):
      self._send(link, dict(bye=code, name=self.name))

  def _accept(self, server: socket.socket) -> None:
    for _ in range(self.count - 1):
      link, _ = server.accept()
      hello = json.loads(link.makefile('r').readline())
      self._links[hello['process']] = link
      self._follow(link, hello['process'], hello['name'])

  def _follow(self, link: socket.socket, process: int, name: str) -> None:
    link.settimeout(SILENCE)
    threading.Thread(target=self._read, args=(link, process, name), daemon=True).start()
    threading.Thread(target=self._beat, args=(link,), daemon=True).start()

  def _beat(self, link: socket.socket) -> None:
    while not self._over.wait(BEAT) and self._send(link, {}):
      pass

  def _send(self, link: socket.socket, message: dict) -> bool:
    try:
      with self._lock:
        link.sendall((json.dumps(message) + '\n').encode())
      return True
    except OSError:
      return False

  def _read(self, link: socket.socket, process: int, name: str) -> None:
    why = 'is gone'
    try:
      for line in link.makefile('r'):
        message = json.loads(line)
        if 'bye' in message:
          if message['bye'] == 0:
            return
          why, name = 'was preempted' if message['bye'] == AGAIN else 'has failed', message['name']
          return self._gone(name, why, message['bye'])
        if 'gone' in message:
          return self._gone(message['gone'], message['why'], message['code'])
    except TimeoutError:
      why = f'has been silent for {SILENCE:.0f} s'
    except (OSError, ValueError):
      pass
    self._gone(name, why, AGAIN)

  def _gone(self, name: str, why: str, code: int) -> None:
    """Passes it on and ends this process, unless it is ending already."""
    if self._over.is_set():
      return
    self._over.set()
    if self.process == 0:
      for link in list(self._links.values()):
        self._send(link, dict(gone=name, why=why, code=code))
    self.end(f'{name} {why}', code)


def stop(text: str, code: int) -> None:
  """Ends this process from a thread: the main thread may stand in a collective that never ends."""
  print(f'\n{text}: this process stops too. What is done is kept: the same command on all continues.', file=sys.stderr, flush=True)
  os._exit(code)
