"""Local servers with the protocols of Google Cloud Storage and S3.

`python tests/support/bucket_servers.py NAME PORT`.
"""

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator


def gcs(port: int) -> None:
  """Serves Google Cloud Storage, in memory, with a bucket named `bucket`."""
  import http.server

  from gcp_storage_emulator.handlers import objects
  from gcp_storage_emulator.server import create_server

  def download(request, response, storage, original=objects.download):
    """Adds a header that the real server always sends and the emulator does not."""
    original(request, response, storage)
    if response.status.value < 300:
      names = request.params["bucket_name"], request.params["object_id"]
      response["x-goog-generation"] = storage.get_file_obj(*names)["generation"]

  objects.download = download
  http.server.HTTPServer.request_queue_size = 1000  # The length of the queue of requests.
  create_server("localhost", port, in_memory=True, default_bucket="bucket").run()


def s3(port: int) -> None:
  """Serves S3, in memory."""
  from moto.server import main

  main(["-p", str(port)])


@contextlib.contextmanager
def serve(name: str) -> Iterator[str]:
  """Runs a server of this file in a process; yields its address."""
  with socket.socket() as probe:
    probe.bind(("localhost", 0))
    port = str(probe.getsockname()[1])
  quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
  with subprocess.Popen([sys.executable, __file__, name, port], **quiet) as process:
    try:
      _wait_for(process, port)
      yield f"http://localhost:{port}"
    finally:
      process.kill()


def _wait_for(server: subprocess.Popen, port: str) -> None:
  for _ in range(600):
    time.sleep(0.1)
    with contextlib.suppress(OSError):
      socket.create_connection(("localhost", int(port))).close()
      return
    assert server.poll() is None, server.args
  raise AssertionError("the server does not answer")


if __name__ == "__main__":
  {"gcs": gcs, "s3": s3}[sys.argv[1]](int(sys.argv[2]))
