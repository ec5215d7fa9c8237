"""The processes of a run end together: when one is gone the others follow within seconds, and say why.

JAX notices by itself that a process has died, but only when heartbeats have been missing for a while, and then ends the
others with a stack trace of C++. So every process also holds a TCP connection to process 0. The kernel closes it when
its process dies, however it dies; keepalive tells of a host that does. Where the connection cannot be made JAX's
heartbeats remain.
"""

import atexit
import contextlib
import ctypes
import json
import os
import secrets
import selectors
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

# Seconds to end by oneself: what is wrong with one process may be so with all, and each should say it.
GRACE = 2
# Seconds of silence, and between so many probes, after which the kernel gives up a host.
_IDLE, _INTERVAL, _PROBES = 10, 5, 4
_PATIENCE = 10  # seconds for a connection
_BYE = -1  # the sender is done; any other number is of a process that is gone
_MESSAGE = struct.Struct("!i")


class ProcessWatchdog:
  """The connections of this process; opening it is something that all processes do together."""

  def __init__(self, host: str = ""):
    """Connects, and watches from then on.

    Args:
      host: by which the others reach process 0, where it is known.
    """
    self._me, self._count = jax.process_index(), jax.process_count()
    self._peers: dict[int, socket.socket] = {}
    self._done: dict[int, socket.socket] = {}  # of process 0: peers that wait for the others
    self._known = threading.Event()
    hub = _open_hub() if self._me == 0 else None
    book = {"hosts": [host] if host else _own_names(), "token": secrets.token_hex(16)}
    book = _from_main({**book, "port": hub.getsockname()[1] if hub else 0})
    if hub:
      self._watch(self._serve, hub, book["token"])
    elif server := _connect(book["hosts"], book["port"], book["token"], self._me):
      self._peers[0] = server
      self._watch(self._listen, server)
    multihost_utils.sync_global_devices("watchdog")  # whoever could has connected
    _delay_abort()
    atexit.register(self.leave)

  def leave(self) -> None:
    """Waits until all the others have come to their end too, so that none is missed by those that still work."""
    if hasattr(sys, "last_value"):  # nobody caught an exception: whoever waits for us waits in vain
      self.fail(1)
    if self._me:
      _send(self._peers, _BYE)
    while self._peers:
      time.sleep(0.02)
    _send(self._done, _BYE)

  def fail(self, code: int, follows: bool = True) -> None:
    """Ends the process at once, with an error; the others hear it from the kernel.

    Args:
      code: of the exit.
      follows: whether the error may be a consequence of another process's end, as that of a collective is; if so, that
        is said.
    """
    if follows and self._known.wait(GRACE / 2):
      _print(self._news)
    os._exit(code)

  def _watch(self, target, *args) -> None:
    threading.Thread(target=target, args=args, daemon=True, name="watchdog").start()

  def _serve(self, hub: socket.socket, token: str) -> None:
    """Process 0: lets the others in, and tells all when one of them is gone."""
    with selectors.DefaultSelector() as ready:
      ready.register(hub, selectors.EVENT_READ, -1)
      while True:
        for key, _ in ready.select():
          if key.data < 0:
            for index, peer in _let_in(hub, token):
              self._peers[index] = peer
              ready.register(peer, selectors.EVENT_READ, index)
              _send({index: peer}, index)
            continue
          ready.unregister(key.fileobj)
          if _receive(self._peers[key.data]) != _BYE:
            self._end(key.data)
          self._done[key.data] = self._peers[key.data]  # before it is no peer any more: see `leave`
          del self._peers[key.data]

  def _listen(self, server: socket.socket) -> None:
    said = _receive(server)
    if said != _BYE:
      self._end(0 if said is None else said)
    self._peers.clear()

  def _end(self, gone: int) -> None:
    self._news = (
      f"error: process {gone} of {self._count} is gone (killed, or ended by an error that its own output tells), "
      f"so process {self._me} stops; start the same command on all hosts again"
    )
    self._known.set()
    if not self._me:
      _send(self._peers | self._done, gone)
    time.sleep(GRACE)
    _print(self._news)
    os._exit(1)


def _open_hub() -> socket.socket:
  if socket.has_dualstack_ipv6():
    with contextlib.suppress(OSError):
      return socket.create_server(
        ("", 0), family=socket.AF_INET6, dualstack_ipv6=True, backlog=4096
      )
  return socket.create_server(("", 0), backlog=4096)


def _own_names() -> list[str]:
  """By which others may reach this machine: the address of its default route, and its name."""
  names = [socket.gethostname()]
  with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
    probe.connect(("192.0.2.1", 9))  # an address for documentation; nothing is sent
    names.insert(0, probe.getsockname()[0])
  return names


def _from_main(book: dict) -> dict:
  """What process 0 has, on all of them."""
  text = np.frombuffer(json.dumps(book).encode().ljust(1024), np.uint8)
  assert len(text) == 1024, book
  return json.loads(np.asarray(multihost_utils.broadcast_one_to_all(text), np.uint8).tobytes())


def _connect(hosts: list[str], port: int, token: str, me: int) -> socket.socket | None:
  for host in hosts:
    with contextlib.suppress(OSError):
      server = socket.create_connection((host, port), timeout=_PATIENCE)
      server.sendall(token.encode() + _MESSAGE.pack(me))
      if _receive(server) == me:
        _keep_alive(server)
        return server
      server.close()
  print(
    f"process {me} cannot reach process 0 on port {port} of {' or '.join(hosts)}: a process that dies will be noticed "
    "later, by JAX's heartbeats",
    file=sys.stderr,
  )
  return None


def _let_in(hub: socket.socket, token: str) -> Iterator[tuple[int, socket.socket]]:
  """Accepts a connection; yields it, and the process that it is from, unless it is a stranger's."""
  peer, _ = hub.accept()
  peer.settimeout(_PATIENCE)
  with contextlib.suppress(OSError):
    hello = _read(peer, len(token))
    index = _receive(peer)
    if index is not None and secrets.compare_digest(hello, token.encode()):
      _keep_alive(peer)
      yield index, peer
      return
  peer.close()


def _keep_alive(connection: socket.socket) -> None:
  connection.settimeout(None)
  connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
  for name, value in (("IDLE", _IDLE), ("INTVL", _INTERVAL), ("CNT", _PROBES)):
    if option := getattr(socket, f"TCP_KEEP{name}", None):  # not on every system
      connection.setsockopt(socket.IPPROTO_TCP, option, value)


def _send(peers: dict[int, socket.socket], number: int) -> None:
  for peer in list(peers.values()):
    with contextlib.suppress(OSError):
      peer.sendall(_MESSAGE.pack(number))


def _receive(connection: socket.socket) -> int | None:
  """The next number; None when the other side is gone."""
  try:
    data = _read(connection, _MESSAGE.size)
  except OSError:
    return None
  return _MESSAGE.unpack(data)[0] if len(data) == _MESSAGE.size else None


def _read(connection: socket.socket, size: int) -> bytes:
  data = b""
  while len(data) < size and (more := connection.recv(size - len(data))):
    data += more
  return data


def _delay_abort() -> None:
  """Makes `abort` wait, so that the line that people understand is the last one.

  When process 0 dies JAX aborts the others at the same moment as they learn it here. `sleep` is a function that a
  handler may call; its argument is the number of the signal, which makes 6 seconds.
  """
  libc = ctypes.CDLL(None)
  libc.signal.argtypes = ctypes.c_int, ctypes.c_void_p
  libc.signal(signal.SIGABRT, ctypes.cast(libc.sleep, ctypes.c_void_p))


def _print(line: str) -> None:
  os.write(2, f"{line}\n".encode())  # no lock that another thread may hold
