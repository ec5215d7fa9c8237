"""`mail_jax.serve` as a process: signals, ports, and Schemathesis on its description."""

import http.client
import importlib.util
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request

import pytest

pytest.importorskip("fastapi", reason="needs FastAPI (make app)")

import served_models

from input_pipeline.common.errors import InputError
from mail_jax.serve import command

pytestmark = pytest.mark.app


def _post(port: int, path: str, body: bytes) -> tuple[int, bytes]:
  connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
  connection.request("POST", path, body, {"Content-Type": "application/json"})
  response = connection.getresponse()
  return response.status, response.read()


def test_sigterm_finishes_what_was_accepted(tmp_path):
  items = [served_models.make_item(k)[0] for k in range(8)]
  for item in items:
    item["expressions"] = [f"the star {k}" for k in range(16)]
  body, answers = json.dumps({"images": items}).encode(), []
  with served_models.running(tmp_path / "log") as server:
    threads = [
      threading.Thread(target=lambda: answers.append(_post(server.port, "/segment/batch", body)))
      for _ in range(8)
    ]
    for thread in threads:
      thread.start()
    time.sleep(0.5)
    assert not answers
    server.process.send_signal(signal.SIGTERM)
    for thread in threads:
      thread.join()
    assert server.process.wait(60) == 0
  assert [status for status, _ in answers] == [200] * 8
  assert all(len(json.loads(answer)["images"]) == 8 for _, answer in answers)
  with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.1", server.port)):
    pass


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["--max_queue", "0"], "--max_queue 0: it must be above 0"),
    (["--max_body_mb", "nan"], "--max_body_mb nan: it must be above 0"),
    (["--max_rate", "-1"], "--max_rate -1: it must be at least 0"),
    (["--timeout", "0"], "--timeout 0: it must be above 0"),
    (["--port", "65536"], "--port 65536: a port is a number from 0 to 65535"),
    (["--host", "nowhere.invalid"], "--host nowhere.invalid --port 8000: cannot listen there"),
  ],
)
def test_an_invalid_option_is_one_line(arguments, message):
  with pytest.raises(InputError, match=message):
    command.main(["--demo", *arguments])


def test_masks_of_named_images_are_not_for_requests(tmp_path):
  file = tmp_path / "instances.json"
  file.write_text(json.dumps(served_models.COCO))
  with pytest.raises(InputError, match="those of requests have no name; set another proposer"):
    command.main(["--demo", "--port", "0", "--instances", f"coco:{file}"])


def test_a_port_in_use_is_found_before_the_model_is_loaded():
  with socket.create_server(("127.0.0.1", 0)) as other:
    port = other.getsockname()[1]
    with pytest.raises(InputError, match=f"--port {port}: cannot listen there"):
      command.main(["--checkpoint", "nowhere", "--port", str(port)])


def test_without_fastapi_it_says_what_to_install(monkeypatch):
  monkeypatch.setitem(sys.modules, "uvicorn", None)
  with pytest.raises(InputError, match=r'pip install "mail_jax\[serve\]"'):
    command.main(["--demo"])


@pytest.mark.slow
def test_schemathesis_finds_nothing(tmp_path):
  if importlib.util.find_spec("schemathesis") is None:
    pytest.skip("needs schemathesis (requirements-fuzz.txt)")
  hooks = pathlib.Path(served_models.__file__).with_name("schemathesis_hooks.py")
  with served_models.running(tmp_path / "log", "--max_megapixels", "1") as server:
    done = subprocess.run(
      [
        *(sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}/openapi.json"),
        *("--max-examples", "100", "--seed", "0", "--no-color"),
      ],
      cwd=tmp_path,
      env={**os.environ, "SCHEMATHESIS_HOOKS": hooks.stem, "PYTHONPATH": str(hooks.parent)},
      capture_output=True,
      text=True,
      check=False,
    )
    assert urllib.request.urlopen(f"{server.url}/health").status == 200
  assert done.returncode == 0, done.stdout[-5000:] + done.stderr
