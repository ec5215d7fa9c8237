"""`prepare` from and to buckets and web servers on this machine: the same bytes as on the disk."""

import functools
import hashlib
import http.server
import json
import pathlib
import shutil
import ssl
import subprocess
import threading
from collections.abc import Iterator

import awkward_server
import pytest
from custom_files import line, write_lines
from PIL import Image
from refer_layout import ReferLayout, make_layout

from input_pipeline import storage
from input_pipeline.common import buckets, fingerprint, places, untrusted_files
from input_pipeline.common.errors import InputError
from input_pipeline.prepare import command as prepare

pytestmark = pytest.mark.extras


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Iterator[tuple[str, pathlib.Path]]:
  """A plain web server, which knows neither ranges nor versions, and its folder."""
  pytest.importorskip("aiohttp", reason="needs aiohttp (make extras)")
  folder = tmp_path_factory.mktemp("site")

  class Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args) -> None:
      """Prints nothing."""

  handler = functools.partial(Handler, directory=str(folder))
  with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", folder
    server.shutdown()


def _upload(folder: pathlib.Path, address: str) -> str:
  files, root = buckets.locate(address, "address")
  for path in folder.rglob("*"):
    if path.is_file():
      files.pipe_file(f"{root}/{path.relative_to(folder).as_posix()}", path.read_bytes())
  return address


@pytest.fixture
def memory(monkeypatch) -> str:
  """An address that fsspec opens in the memory of this process."""
  monkeypatch.setitem(buckets._BUCKETS, "memory", ("fsspec", ""))
  return "memory://bucket"


@pytest.fixture(params=["memory", "gcs", "s3", "http"])
def put(request, tmp_path):
  """Returns a function that makes a folder available at an address."""
  if request.param == "http":
    address, served = request.getfixturevalue("site")

    def copy(folder: pathlib.Path) -> str:
      name = fingerprint.of_bytes(str(tmp_path).encode())
      shutil.copytree(folder, served / name, dirs_exist_ok=True)
      return f"{address}/{name}"

    return copy
  place = f"{request.getfixturevalue(request.param)}{tmp_path}/files"
  return lambda folder: _upload(folder, place)


@pytest.fixture(params=["gcs", "s3"])
def bucket(request, tmp_path) -> str:
  return f"{request.getfixturevalue(request.param)}{tmp_path}/data"


def _records(data_dir: str, name: str) -> dict[str, str]:
  """Returns the digests of all files, except those with times and paths."""
  folder = storage.open_dir(data_dir, name)
  return {
    path.name: hashlib.sha256(path.read_bytes()).hexdigest()
    for path in folder.iterdir()
    if path.name not in ("timing.json", "metadata.json")
  }


def _metadata(data_dir: str, name: str) -> dict:
  metadata = storage.read_metadata(data_dir, name)
  assert metadata is not None
  metadata["arguments"].pop("images")
  metadata["mask_recipe"].pop("spec")  # names the file; `content` is the same
  return metadata


def _arguments(layout: ReferLayout, place: str, data_dir: str, *more: str) -> list[str]:
  arguments = {
    "--dataset": layout.dataset,
    "--refer_root": f"{place}/refer",
    "--images": f"{place}/train2014",
    "--instances": f"coco:{place}/refer/refcoco/instances.json",
    "--data_dir": data_dir,
  }
  return [*(part for pair in arguments.items() for part in pair), *more]


@pytest.mark.parametrize("workers", ["1", "2"])
def test_photos_refs_and_annotations_at_addresses_make_the_same_records(put, tmp_path, workers):
  layout = make_layout(tmp_path / "files")
  place = put(tmp_path / "files")
  if place.startswith("memory:") and workers != "1":
    pytest.skip("another process does not see this one's memory")
  here, there = str(tmp_path / "here"), str(tmp_path / "there")
  prepare.main(layout.arguments(pathlib.Path(here)))
  prepare.main(_arguments(layout, place, there, "--workers", workers))
  assert _records(there, "refcoco_unc") == _records(here, "refcoco_unc")
  assert _metadata(there, "refcoco_unc") == _metadata(here, "refcoco_unc")


def test_lines_at_an_address_make_the_same_records(put, tmp_path):
  folder = tmp_path / "files"
  (folder / "photos").mkdir(parents=True)
  for name in ("a b#1.png", "two.png"):
    Image.effect_noise((32, 24), 90.0).save(folder / "photos" / name)
  Image.new("L", (32, 24), 255).crop((0, 0, 32, 24)).save(folder / "photos" / "mask.png")
  rows = [
    line("photos/a b#1.png", target={"polygons": [[1, 1, 9, 1, 9, 9]]}, split="train"),
    line("photos/two.png", target={"png": "photos/mask.png"}, split="val"),
  ]
  write_lines(folder / "mine.jsonl", *rows)
  place = put(folder)
  for source, data_dir in ((str(folder), "here"), (place, "there")):
    dataset = f"jsonl:{source}/mine.jsonl"
    prepare.main(["--dataset", dataset, "--data_dir", str(tmp_path / data_dir)])
  assert _records(str(tmp_path / "there"), "mine") == _records(str(tmp_path / "here"), "mine")


def test_records_in_a_bucket_are_those_on_the_disk(bucket, tmp_path, capsys):
  layout = make_layout(tmp_path)
  prepare.main(layout.arguments(tmp_path / "here"))
  command = [*layout.arguments(tmp_path / "here"), "--data_dir", bucket]
  prepare.main(command)
  assert _records(bucket, "refcoco_unc") == _records(str(tmp_path / "here"), "refcoco_unc")
  assert storage.prepared(bucket) == ["refcoco_unc"]
  assert storage.read_timing(bucket, "refcoco_unc").keys() == {"train", "val", "testA", "testB"}
  capsys.readouterr()
  prepare.main(command)
  assert "is already prepared" in capsys.readouterr().out


def test_a_data_set_in_a_bucket_is_replaced_whole(bucket, tmp_path):
  layout = make_layout(tmp_path)
  command = [*layout.arguments(tmp_path / "unused"), "--data_dir", bucket]
  prepare.main(command)
  (storage.open_dir(bucket, "refcoco_unc") / "leftover").write_text("of a killed process")
  command += ["--max_instances", "1"]
  with pytest.raises(InputError, match="max_instances was 16 and is now 1"):
    prepare.main(command)
  prepare.main([*command, "--overwrite"])
  prepare.main([*layout.arguments(tmp_path / "here"), "--max_instances", "1"])
  assert _records(bucket, "refcoco_unc") == _records(str(tmp_path / "here"), "refcoco_unc")


def test_a_data_set_is_not_there_until_all_of_it_is(bucket, tmp_path, monkeypatch):
  files, _ = buckets.locate(bucket, "--data_dir")
  written, original = [], files.put_file

  def dying(path, target):
    if len(written) == 3:
      raise KeyboardInterrupt
    written.append(target)
    original(path, target)

  layout = make_layout(tmp_path)
  command = [*layout.arguments(tmp_path / "unused"), "--data_dir", bucket]
  monkeypatch.setattr(files, "put_file", dying)
  with pytest.raises(KeyboardInterrupt):
    prepare.main(command)
  assert len(written) == 3 and storage.read_metadata(bucket, "refcoco_unc") is None
  monkeypatch.undo()
  prepare.main(command)
  assert storage.read_metadata(bucket, "refcoco_unc") is not None


@pytest.mark.parametrize("missing", ["image", "refs", "bucket"])
def test_what_is_missing_at_an_address_is_one_line(put, tmp_path, missing):
  layout = make_layout(tmp_path / "files")
  if missing == "image":
    layout.image_path(0).unlink()
  elif missing == "refs":
    layout.refs_path.unlink()
  place = put(tmp_path / "files")
  if missing == "bucket":
    place += "-gone"
  expected = {
    "image": r"COCO_train2014_000000000100\.jpg",
    "refs": r"refs\(unc\)\.p: no such file",
    "bucket": "refcoco",
  }[missing]
  with pytest.raises(InputError, match=rf"^[^\n]*{expected}[^\n]*$"):
    prepare.main(_arguments(layout, place, str(tmp_path / "there")))
  assert not (tmp_path / "there").exists()


def test_a_server_that_is_down_is_not_a_missing_file(tmp_path, monkeypatch):
  pytest.importorskip("aiohttp", reason="needs aiohttp (make extras)")
  monkeypatch.setattr(places, "_PAUSES", (0.0, 0.0))
  with pytest.raises(
    InputError, match=r"^photo cannot be reached: .*127\.0\.0\.1:9.*; check the a"
  ):
    untrusted_files.read("http://127.0.0.1:9/photo.jpg", "photo", 100)
  with pytest.raises(InputError, match="cannot be reached"):
    places.is_file("http://127.0.0.1:9/photo.jpg")


def test_a_request_that_breaks_off_is_made_again(monkeypatch):
  pytest.importorskip("aiohttp", reason="needs aiohttp (make extras)")
  monkeypatch.setattr(places, "_PAUSES", (0.0, 0.0))
  with awkward_server.running() as server:
    server.files["/photo.jpg"] = b"x" * 1000
    server.break_after = 10

    def repair(pause: float) -> None:
      server.break_after = None

    monkeypatch.setattr("time.sleep", repair)
    address = f"{server.address}/photo.jpg"
    assert untrusted_files.read(address, "photo", 5000) == b"x" * 1000
    with pytest.raises(InputError, match="exceeds the limit of 999 bytes"):
      untrusted_files.read(address, "photo", 999)


def test_a_list_is_copied_once_for_each_version(put, tmp_path):
  folder = tmp_path / "files"
  folder.mkdir()
  (folder / "list.json").write_text("[1]")
  address = f"{put(folder)}/list.json"
  assert fingerprint.of_file(address) == fingerprint.of_file(folder / "list.json")
  copy = pathlib.Path(places.local_copy(address))
  assert places.local_copy(address) == str(copy) and copy.read_text() == "[1]"
  (folder / "list.json").write_text("[1, 2]")
  put(folder)
  places._copied.cache_clear()  # another process
  assert pathlib.Path(places.local_copy(address)).read_text() == "[1, 2]"
  assert copy.read_text() == "[1]"


def test_without_a_version_a_copy_is_not_kept(tmp_path):
  pytest.importorskip("aiohttp", reason="needs aiohttp (make extras)")
  del tmp_path
  with awkward_server.running() as server:
    server.versions = False
    server.files["/list.json"] = b"[1]"
    address = f"{server.address}/list.json"
    copy = places.local_copy(address)
    places._copied.cache_clear()
    server.files["/list.json"] = b"[2]"
    assert pathlib.Path(places.local_copy(address)).read_text() == "[2]"
    assert pathlib.Path(copy).read_text() == "[1]"


def test_a_certificate_that_is_not_trusted_is_one_line(site, tmp_path, monkeypatch):
  del site
  monkeypatch.setattr(places, "_PAUSES", ())
  if shutil.which("openssl") is None:
    pytest.skip("needs openssl, for a certificate")
  options = ["-newkey", "rsa:2048", "-nodes", "-keyout", "key.pem", "-out", "cert.pem"]
  subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
  command = ["openssl", "req", "-x509", *options, "-days", "1", *subject]
  subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
  context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
  context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
  handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
  with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    address = f"https://127.0.0.1:{server.server_address[1]}/cert.pem"
    with pytest.raises(InputError, match=r"cannot be reached: .*certificate"):
      untrusted_files.read(address, "photo", 5000)
    server.shutdown()


@pytest.mark.parametrize("name", ["../secret.jpg", "/etc/passwd", "https://evil/a.jpg", ""])
def test_names_cannot_leave_a_web_server_s_folder(site, tmp_path, name):
  address, _ = site
  layout = make_layout(tmp_path / "files")
  layout.instances["images"][0]["file_name"] = name
  layout.write()
  command = layout.arguments(tmp_path / "data", "--images", f"{address}/train2014")
  with pytest.raises(InputError, match=r"is not a path in this folder|has no file_name"):
    prepare.main(command)


def test_a_web_server_cannot_hold_records(tmp_path):
  del tmp_path
  command = ["--dataset", "shapes", "--data_dir", "https://host/data"]
  with pytest.raises(InputError, match=r"--data_dir https://host/data\S*: only read from; use"):
    prepare.main(command)


def test_an_address_in_an_exported_folder_is_one_line(tmp_path, monkeypatch):
  from mail_jax.export import scripts

  scripts.copy_preprocessing(tmp_path / "alone")
  monkeypatch.syspath_prepend(str(tmp_path))
  import alone.common.untrusted_files as shipped  # pyright: ignore[reportMissingImports]

  with pytest.raises(ValueError, match="photo: an address; download the file and use its path"):
    shipped.read("https://host/photo.jpg", "photo", 100)


def test_the_folder_of_a_line_s_annotations_is_that_of_the_file(put, tmp_path):
  folder = tmp_path / "files"
  folder.mkdir()
  Image.effect_noise((32, 24), 90.0).save(folder / "one.png")
  square = {"id": 7, "image_id": 3, "category_id": 1, "segmentation": [[1, 1, 9, 1, 9, 9]]}
  image = {"id": 3, "file_name": "one.png", "height": 24, "width": 32}
  coco = {"images": [image], "annotations": [square], "categories": []}
  (folder / "coco.json").write_text(json.dumps(coco))
  row = line("one.png", target={"ann_id": 7}, split="train") | {"annotations": "coco.json"}
  write_lines(folder / "mine.jsonl", row)
  place = put(folder)
  prepare.main(["--dataset", f"jsonl:{place}/mine.jsonl", "--data_dir", str(tmp_path / "data")])
  assert _metadata(str(tmp_path / "data"), "mine")["counts"]["train"]["refs"] == 1
