"""Ends all processes of a run about 2 seconds after one of them died, and says which one.

Every process holds a TCP connection to process 0. The kernel closes it as soon as the process dies,
in any way; keepalive detects a dead host. Without a connection JAX's heartbeats remain.

Those alone do not suffice. Measured with JAX 0.10.2 and 0.12.0.1, 3 local processes (CPU), SIGKILL
to process 1 while the others work on the host:

| heartbeat_timeout_seconds | the others end after |
| --- | --- |
| 100 (the default of JAX) | 98 s (0.10.2 only) |
| 40 (ours, see `processes`) | 38 to 39 s |
| 10 | 8 to 9 s |
| 3 | 2.7 to 3.3 s, but a process that was only stopped for 5 s ends the run too |

They end by SIGABRT, with a C++ stack trace as their last lines. If the others wait in a
collective, Gloo raises at once, but JAX then waits in its shutdown barrier for the dead process:
11 s with a shutdown timeout of 10 s. Only if process 0 dies do the others end sooner, within 1 s,
also by SIGABRT.
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

# Seconds in which a process may still end by itself: the same error may occur in all of them, and
# each should report it.
GRACE = 2
# TCP keepalive: seconds before the first probe, seconds between probes, and their number.
_IDLE, _INTERVAL, _PROBES = 10, 5, 4
# Seconds to wait for a connection.
_CONNECT_TIMEOUT = 10
# The message of a process that is done; any other number is that of a process that died.
_BYE = -1
_MESSAGE = struct.Struct("!i")


class ProcessWatchdog:
  """Connects this process to process 0, or to all others if it is process 0."""

  def __init__(self, host: str = ""):
    """Connects and starts to watch; all processes must do this together.

    Args:
      host: name or address of process 0, if it is known.
    """
    self._me, self._count = jax.process_index(), jax.process_count()
    self._peers: dict[int, socket.socket] = {}
    # Of process 0: peers that are done and wait for the others.
    self._done: dict[int, socket.socket] = {}
    self._peer_died = threading.Event()
    self._message = ""
    listener = _open_listener() if self._me == 0 else None
    contact = {"hosts": [host] if host else _own_names(), "token": secrets.token_hex(16)}
    contact = _broadcast({**contact, "port": listener.getsockname()[1] if listener else 0})
    if listener:
      self._watch(self._serve, listener, contact["token"])
    elif server := _connect(contact["hosts"], contact["port"], contact["token"], self._me):
      self._peers[0] = server
      self._watch(self._listen, server)
    # From here on every process that could connect has done so.
    multihost_utils.sync_global_devices("watchdog")
    _delay_abort()
    atexit.register(self.leave)

  def leave(self) -> None:
    """Waits until all other processes are done too, so that none of them seems to have died."""
    if hasattr(sys, "last_value"):  # An exception was not caught: the others would wait in vain.
      self.fail(1)
    if self._me:
      _send(self._peers, _BYE)
    while self._peers:
      time.sleep(0.02)
    _send(self._done, _BYE)

  def fail(self, code: int, may_follow: bool = True) -> None:
    """Exits at once with an error code; the kernel closes the connections, so the others notice.

    Args:
      code: exit code.
      may_follow: whether the error may be a consequence of the death of another process, as that of
        a collective is; if one died, that is printed too.
    """
    if may_follow and self._peer_died.wait(GRACE / 2):
      _print(self._message)
    os._exit(code)

  def _watch(self, target, *args) -> None:
    threading.Thread(target=target, args=args, daemon=True, name="watchdog").start()

  def _serve(self, listener: socket.socket, token: str) -> None:
    """Runs in process 0: accepts the others, and tells all of them when one died."""
    with selectors.DefaultSelector() as ready:
      ready.register(listener, selectors.EVENT_READ, -1)
      while True:
        for key, _ in ready.select():
          if key.data < 0:
            for index, peer in _accept(listener, token):
              self._peers[index] = peer
              ready.register(peer, selectors.EVENT_READ, index)
              _send({index: peer}, index)
            continue
          ready.unregister(key.fileobj)
          if _receive(self._peers[key.data]) != _BYE:
            self._end(key.data)
          # In this order, since `leave` reads both.
          self._done[key.data] = self._peers[key.data]
          del self._peers[key.data]

  def _listen(self, server: socket.socket) -> None:
    number = _receive(server)
    if number != _BYE:
      self._end(0 if number is None else number)
    self._peers.clear()

  def _end(self, dead: int) -> None:
    self._message = (
      f"error: process {dead} of {self._count} died (see its output), so process {self._me} stops; "
      "run the same command on all hosts again to resume"
    )
    self._peer_died.set()
    if not self._me:
      _send(self._peers | self._done, dead)
    time.sleep(GRACE)
    _print(self._message)
    os._exit(1)


def _open_listener() -> socket.socket:
  if socket.has_dualstack_ipv6():
    with contextlib.suppress(OSError):
      return socket.create_server(
        ("", 0), family=socket.AF_INET6, dualstack_ipv6=True, backlog=4096
      )
  return socket.create_server(("", 0), backlog=4096)


def _own_names() -> list[str]:
  """Returns the address of this machine's default route, and its host name."""
  names = [socket.gethostname()]
  with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
    # An address reserved for documentation; nothing is sent.
    probe.connect(("192.0.2.1", 9))
    names.insert(0, probe.getsockname()[0])
  return names


def _broadcast(contact: dict) -> dict:
  """Returns the value of process 0 on every process."""
  text = np.frombuffer(json.dumps(contact).encode().ljust(1024), np.uint8)
  assert len(text) == 1024, contact
  return json.loads(np.asarray(multihost_utils.broadcast_one_to_all(text), np.uint8).tobytes())


def _connect(hosts: list[str], port: int, token: str, me: int) -> socket.socket | None:
  for host in hosts:
    with contextlib.suppress(OSError):
      server = socket.create_connection((host, port), timeout=_CONNECT_TIMEOUT)
      server.sendall(token.encode() + _MESSAGE.pack(me))
      if _receive(server) == me:
        _keep_alive(server)
        return server
      server.close()
  print(
    f"warning: process {me} cannot reach process 0 on port {port} of {' or '.join(hosts)}; a dead "
    "process will be detected later, by JAX's heartbeats",
    file=sys.stderr,
  )
  return None


def _accept(listener: socket.socket, token: str) -> Iterator[tuple[int, socket.socket]]:
  """Accepts a connection; yields its process and the socket if it sends the right token."""
  peer, _ = listener.accept()
  peer.settimeout(_CONNECT_TIMEOUT)
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
    if option := getattr(socket, f"TCP_KEEP{name}", None):  # Not on every system.
      connection.setsockopt(socket.IPPROTO_TCP, option, value)


def _send(peers: dict[int, socket.socket], number: int) -> None:
  for peer in list(peers.values()):
    with contextlib.suppress(OSError):
      peer.sendall(_MESSAGE.pack(number))


def _receive(connection: socket.socket) -> int | None:
  """Returns the next number; None if the connection is closed."""
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
  """Delays SIGABRT by 6 seconds, so that our message is the last line of the output.

  When process 0 dies JAX aborts the others within a second, before GRACE is over; no option of JAX
  prevents it, and a handler in Python would run too late. The handler is libc's `sleep`, which is
  safe in signal handlers; its argument is the number of the signal, 6.
  """
  libc = ctypes.CDLL(None)
  libc.signal.argtypes = ctypes.c_int, ctypes.c_void_p
  libc.signal(signal.SIGABRT, ctypes.cast(libc.sleep, ctypes.c_void_p))


def _print(line: str) -> None:
  # Not `print`, whose lock another thread may hold.
  os.write(2, f"{line}\n".encode())
