"""Local servers with the protocols of Google Cloud Storage and S3.

`python tests/support/bucket_servers.py NAME PORT [MORE]`.
"""

import http.client
import pathlib
import socket
import ssl
import sys
import threading


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


def proxy(port: int, folder: str, emulator: str) -> None:
  """Serves an HTTPS proxy to the emulator, for TensorFlow, which only knows Google's address.

  Args:
    port: of the proxy.
    folder: of `cert.pem` and `key.pem`, for googleapis.com.
    emulator: port of `gcs`.
  """
  context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
  context.load_cert_chain(pathlib.Path(folder) / "cert.pem", pathlib.Path(folder) / "key.pem")
  with socket.create_server(("localhost", port), backlog=200) as server:
    while True:
      client = server.accept()[0]
      threading.Thread(target=_serve, args=(client, context, int(emulator)), daemon=True).start()


def _serve(client: socket.socket, context: ssl.SSLContext, emulator: int) -> None:
  asked = client.makefile("rb")
  while asked.readline().strip():
    pass  # CONNECT to a host of Google, and headers.
  client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
  with context.wrap_socket(client, server_side=True) as secure, secure.makefile("rb") as lines:
    while line := lines.readline():
      method, path, _ = line.decode().split()
      pairs = (header.decode().split(":", 1) for header in iter(lines.readline, b"\r\n"))
      headers = {name: value.strip() for name, value in pairs if name.lower() != "host"}
      body = lines.read(int(headers.get("Content-Length", 0)))
      connection = http.client.HTTPConnection("localhost", emulator)
      connection.request(method, path, body, headers)
      answer = connection.getresponse()
      data = answer.read()
      head = f"HTTP/1.1 {answer.status} {answer.reason}\r\nContent-Length: {len(data)}\r\n\r\n"
      secure.sendall(head.encode() + data)


if __name__ == "__main__":
  {"gcs": gcs, "s3": s3, "proxy": proxy}[sys.argv[1]](int(sys.argv[2]), *sys.argv[3:])
