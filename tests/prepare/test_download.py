"""`prepare --download`, from a server that breaks off, lies about sizes, redirects and forgets."""

import contextlib
import hashlib
import io
import json
import pathlib
import pickle
import re
import types
import zipfile
from collections.abc import Iterator

import awkward_server
import numpy as np
import pyarrow
import pytest
from awkward_server import AwkwardServer
from pyarrow import parquet
from refer_layout import SPLITS, ReferLayout, make_generalised, make_layout

from input_pipeline import storage
from input_pipeline.common import hub
from input_pipeline.common.errors import InputError
from input_pipeline.prepare import command as prepare
from input_pipeline.prepare import download, transfer
from input_pipeline.prepare.download import Archive, HubFiles, HubTables, Photos
from input_pipeline.prepare.transfer import File
from input_pipeline.sources import phrasecut, refer

DATA = np.random.default_rng(0).bytes(300_000)
NAME = "/a/photos.bin"
HUB = "somebody/refcoco"


@pytest.fixture
def server(monkeypatch) -> Iterator[AwkwardServer]:
  monkeypatch.setattr(hub, "PAUSES", (0.0, 0.0))
  monkeypatch.setattr("time.sleep", lambda seconds: None)  # huggingface_hub waits as well
  with awkward_server.running() as running:
    running.files[NAME] = DATA
    yield running


def _file(server: AwkwardServer, size: int | None = len(DATA), sha256: str = "") -> File:
  return File(server.address + NAME, size, sha256)


@pytest.mark.parametrize("size", [len(DATA), None])
def test_a_download_goes_on_after_each_break(server, tmp_path, size):
  server.break_after = 70_000
  transfer.fetch(_file(server, size), tmp_path / "photos.bin")
  assert (tmp_path / "photos.bin").read_bytes() == DATA
  starts = [f"bytes={start}-" for start in range(1 << 16, len(DATA), 1 << 16)]
  assert server.requests_for(NAME) == ["", *starts]


def test_a_later_command_asks_only_for_what_is_missing(server, tmp_path):
  (tmp_path / "photos.bin.part").write_bytes(DATA[:250_000])
  transfer.fetch(_file(server), tmp_path / "photos.bin")
  assert (tmp_path / "photos.bin").read_bytes() == DATA
  assert server.requests_for(NAME) == ["bytes=250000-"]
  assert not (tmp_path / "photos.bin.part").exists()
  transfer.fetch(_file(server), tmp_path / "photos.bin")
  assert server.requests_for(NAME) == ["bytes=250000-"]


def test_a_server_that_refuses_to_resume_starts_again(server, tmp_path):
  server.ranges = False
  (tmp_path / "photos.bin.part").write_bytes(b"x" * 250_000)
  transfer.fetch(_file(server), tmp_path / "photos.bin")
  assert (tmp_path / "photos.bin").read_bytes() == DATA


def test_a_server_that_never_sends_everything_is_one_line_and_keeps_what_came(server, tmp_path):
  server.ranges, server.break_after = False, 70_000
  message = r"^http\S*photos\.bin: .*; 65,536 of 300,000 bytes are in \S*part, .* goes on.*by hand"
  with pytest.raises(InputError, match=message):
    transfer.fetch(_file(server), tmp_path / "photos.bin")
  assert [path.name for path in tmp_path.iterdir()] == ["photos.bin.part"]


def test_another_size_than_the_published_one_is_told_before_anything_is_transferred(
  server, tmp_path
):
  with pytest.raises(InputError, match=r"has 300,000 bytes, but 299,999 are published; .* by hand"):
    transfer.fetch(_file(server, len(DATA) - 1), tmp_path / "photos.bin")
  assert not server.requests_for(NAME)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("lie", [299_999, 300_001])
def test_a_size_that_is_not_what_comes_is_an_error(server, tmp_path, lie):
  server.told[NAME] = lie
  sha256 = hashlib.sha256(DATA).hexdigest()
  with pytest.raises(InputError, match=r"SHA-256|bytes are in"):
    transfer.fetch(_file(server, None, sha256), tmp_path / "photos.bin")
  assert not (tmp_path / "photos.bin").exists()


def test_other_content_of_the_same_size_is_removed(server, tmp_path):
  sha256 = hashlib.sha256(DATA[::-1]).hexdigest()
  with pytest.raises(InputError, match=rf"its SHA-256 is .*, not {sha256}, so it was removed"):
    transfer.fetch(_file(server, sha256=sha256), tmp_path / "photos.bin")
  assert not list(tmp_path.iterdir())


def test_redirects_are_followed(server, tmp_path):
  server.redirects |= {NAME: "/b", "/b": "/c"}
  server.files["/c"] = DATA
  server.break_after = 200_000
  transfer.fetch(_file(server), tmp_path / "photos.bin")
  assert (tmp_path / "photos.bin").read_bytes() == DATA


@pytest.mark.parametrize("gone", ["circle", "missing", "down"])
def test_a_server_without_the_file_is_one_line(server, tmp_path, gone):
  if gone == "circle":
    server.redirects[NAME] = NAME
  elif gone == "missing":
    server.files.clear()
  file = _file(server) if gone != "down" else File("http://127.0.0.1:9/photos.bin")
  with pytest.raises(InputError, match=r"^http\S* cannot be reached \([^\n]*by hand to [^\n]*bin$"):
    transfer.fetch(file, tmp_path / "photos.bin")


def test_a_download_that_does_not_fit_is_told_first(server, tmp_path, monkeypatch):
  monkeypatch.setattr("shutil.disk_usage", lambda path: types.SimpleNamespace(free=100))
  monkeypatch.setattr(transfer.atomic_files, "describe_space", lambda path, needed: f"{needed}")
  with pytest.raises(InputError, match="does not fit: 300000; name folders on a larger disk"):
    transfer.fetch(_file(server), tmp_path / "photos.bin")
  assert not server.requests_for(NAME)


def _zip(files: dict[str, bytes]) -> bytes:
  data = io.BytesIO()
  with zipfile.ZipFile(data, "w") as archive:
    for name, content in files.items():
      archive.writestr(name, content)
  return data.getvalue()


def test_a_damaged_archive_is_one_line(tmp_path):
  path = tmp_path / "photos.zip"
  data = bytearray(_zip({"train2014/1.jpg": DATA}))
  data[1000] ^= 1
  path.write_bytes(bytes(data))
  with pytest.raises(InputError, match=r"photos\.zip: damaged \(Bad CRC.*; remove it and run"):
    transfer.extract(path, tmp_path / "train2014")
  assert not list((tmp_path / "train2014").iterdir())


def test_names_in_an_archive_cannot_leave_the_folder(tmp_path):
  path = tmp_path / "photos.zip"
  path.write_bytes(_zip({"../../evil.jpg": b"x", "/evil.jpg": b"x", "a/good.jpg": b"y"}))
  transfer.extract(path, tmp_path / "in" / "train2014")
  assert [p.name for p in tmp_path.rglob("*.jpg")] == ["good.jpg"]


def _counts(layout: ReferLayout, scale: int = 1) -> refer.Layout:
  """Returns the layout of a data set whose published counts are those of a tiny one."""
  published = {}
  for split in SPLITS[layout.dataset][2]:
    refs = [ref for ref in layout.refs if ref["split"] == split]
    texts = sum(len(ref["sentences"]) for ref in refs)
    published[split] = refer.Published(scale * len(refs), texts)
  folder, name, _ = SPLITS[layout.dataset]
  return refer.Layout(folder, name, published)


def _table(layout: ReferLayout, split: str) -> bytes:
  """Returns refs as the Hub's tables have them."""
  annotations = {row["id"]: row for row in layout.instances["annotations"]}
  rows = [
    ref | {"raw_anns": json.dumps(annotations[ref["ann_id"]]), "raw_image_info": "{}"}
    for ref in layout.refs
    if ref["split"] == split
  ]
  for row in rows:
    row["sentences"] = [sentence | {"tokens": ["a"]} for sentence in row["sentences"]]
  data = io.BytesIO()
  parquet.write_table(pyarrow.Table.from_pylist(rows), data)
  return data.getvalue()


@pytest.fixture
def published(server, monkeypatch, tmp_path) -> ReferLayout:
  """A tiny RefCOCO that the server has in all places: the Hub, the archive, COCO's zips."""
  layout = make_layout(tmp_path / "original")
  names = {"train": "train", "val": "validation", "testA": "test", "testB": "testB"}
  server.hub[HUB] = {
    f"data/{name}-00000-of-00001.parquet": _table(layout, split) for split, name in names.items()
  } | {"README.md": b"read me"}
  folder = "refcoco/"
  server.files |= {
    "/refcoco.zip": _zip(
      {
        f"{folder}refs(unc).p": pickle.dumps(layout.refs, protocol=2),
        f"{folder}refs(google).p": b"another",
        f"{folder}instances.json": json.dumps(layout.instances).encode(),
      }
    ),
    "/annotations.zip": _zip(
      {
        "annotations/instances_train2014.json": json.dumps(layout.instances).encode(),
        "annotations/captions_train2014.json": b"{}",
      }
    ),
    "/train2014.zip": _zip(
      {f"train2014/{path.name}": path.read_bytes() for path in layout.images.iterdir()}
    ),
  }
  monkeypatch.setenv("HF_ENDPOINT", server.address)
  monkeypatch.setattr(download, "COCO_ANNOTATIONS", File(f"{server.address}/annotations.zip"))
  monkeypatch.setattr(
    download, "TRAIN2014", Photos((File(f"{server.address}/train2014.zip"),), len(names))
  )
  sources = HubTables(HUB), Archive(File(f"{server.address}/refcoco.zip"))
  monkeypatch.setattr(download, "REFS", {"refcoco_unc": sources})
  monkeypatch.setattr(refer, "LAYOUTS", {"refcoco_unc": _counts(layout)})
  return layout


def _prepare(folder: pathlib.Path, *more: str) -> dict[str, str]:
  """Downloads and prepares in a folder; returns the digests of the records."""
  arguments = {
    "--dataset": "refcoco_unc",
    "--refer_root": str(folder / "refer"),
    "--images": str(folder / "train2014"),
    "--instances": f"coco:{folder}/refer/refcoco/instances.json",
    "--data_dir": str(folder / "data"),
  }
  prepare.main([*(part for pair in arguments.items() for part in pair), *more])
  return {
    path.name: hashlib.sha256(path.read_bytes()).hexdigest()
    for path in pathlib.Path(storage.dataset_dir(str(folder / "data"), "refcoco_unc")).iterdir()
    if ".tfrecord" in path.name
  }


@pytest.fixture
def by_hand(published, tmp_path) -> dict[str, str]:
  """The records of the same data set, downloaded by hand."""
  prepare.main(published.arguments(tmp_path / "by_hand"))
  folder = pathlib.Path(storage.dataset_dir(str(tmp_path / "by_hand"), "refcoco_unc"))
  return {
    path.name: hashlib.sha256(path.read_bytes()).hexdigest()
    for path in folder.iterdir()
    if ".tfrecord" in path.name
  }


def _left(folder: pathlib.Path) -> list[str]:
  paths = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
  return sorted(path for path in paths if not path.startswith(("data/", "train2014/")))


def test_one_command_from_nothing_to_the_records_of_a_download_by_hand(
  server, by_hand, tmp_path, monkeypatch
):
  server.break_after = 1500
  monkeypatch.setattr(hub, "CHUNK", 1000)
  assert _prepare(tmp_path / "new", "--download") == by_hand
  assert _left(tmp_path / "new") == [
    "refer/instances_train2014.json",
    "refer/refcoco/instances.json",
    "refer/refcoco/refs(unc).json",
  ]
  asked = len(server.asked)
  assert _prepare(tmp_path / "new", "--download") == by_hand
  assert len(server.asked) == asked


@pytest.mark.parametrize("gone", ["the Hub", "its annotations", "a part"])
def test_the_archive_is_next(server, by_hand, published, tmp_path, capsys, gone):
  if gone == "the Hub":
    server.hub.clear()
  elif gone == "its annotations":
    other = json.dumps(published.instances).replace("12.0", "13.0")
    content = {"annotations/instances_train2014.json": other.encode()}
    server.files["/annotations.zip"] = _zip(content)
  else:
    del server.hub[HUB]["data/test-00000-of-00001.parquet"]
  assert _prepare(tmp_path / "new", "--download") == by_hand
  printed = capsys.readouterr().out
  reasons = {
    "the Hub": "",
    "its annotations": "has another segmentation in",
    "a part": "testA 0 / 0 of 2 / 3",
  }
  assert re.search(rf"not from the Hub's {HUB}: .*{reasons[gone]}", printed)
  assert "refer/refcoco/refs(unc).p" in _left(tmp_path / "new")


def test_without_any_source_the_way_out_is_named_and_nothing_is_left(server, published, tmp_path):
  del published
  server.hub.clear()
  server.files["/refcoco.zip"] = b"<html>busy</html>"
  with pytest.raises(InputError) as caught:
    _prepare(tmp_path / "new", "--download")
  message = str(caught.value)
  assert re.search(r"the Hub's somebody/refcoco: .*; the archived copy: http.*: not a z", message)
  assert re.search(r"download refs\(unc\)\.p and instances\.json by hand to \S*refcoco ", message)
  assert "\n" not in message
  assert not _left(tmp_path / "new")


def test_unpacking_goes_on_where_it_was_interrupted(server, by_hand, tmp_path, monkeypatch):
  original, calls = transfer._extract, []

  def dying(content, info, folder):
    calls.append(info.filename)
    if len(calls) == 3:
      raise KeyboardInterrupt
    return original(content, info, folder)

  _prepare_refs(tmp_path / "new")
  monkeypatch.setattr(transfer, "_extract", dying)
  with pytest.raises(KeyboardInterrupt):
    _prepare(tmp_path / "new", "--download")
  assert len(list((tmp_path / "new/train2014").iterdir())) == 2
  asked = len(server.asked)
  assert _prepare(tmp_path / "new", "--download") == by_hand
  assert len(server.asked) == asked
  assert not list((tmp_path / "new").glob("*.zip*"))


def _prepare_refs(folder: pathlib.Path) -> None:
  """Downloads the refs alone."""
  (folder / "train2014").mkdir(parents=True)
  (folder / "train2014" / "there.jpg").write_bytes(b"")
  download.fetch_missing("refcoco_unc", str(folder / "refer"), str(folder / "train2014"))
  (folder / "train2014" / "there.jpg").unlink()


def test_fewer_photos_than_published_are_an_error(server, published, tmp_path):
  photo = published.image_path(0)
  server.files["/train2014.zip"] = _zip({f"train2014/{photo.name}": photo.read_bytes()})
  with pytest.raises(InputError, match=r"1 photo after unpacking .* but 4 are published"):
    _prepare(tmp_path / "new", "--download")


def test_files_of_grefcoco_are_taken_from_the_hub_as_they_are(server, monkeypatch, tmp_path):
  layout = make_generalised(tmp_path / "original")
  server.hub["authors/grefcoco"] = {
    "grefs(unc).json": layout.refs_path.read_bytes(),
    "instances.json": layout.instances_path.read_bytes(),
    "rephrased.json": b"[]",
  }
  monkeypatch.setenv("HF_ENDPOINT", server.address)
  monkeypatch.setattr(download, "REFS", {"grefcoco_unc": (HubFiles("authors/grefcoco"),)})
  root = tmp_path / "new" / "refer"
  download.fetch_missing("grefcoco_unc", str(root), str(layout.images))
  assert {p.name: p.read_bytes() for p in (root / "grefcoco").iterdir()} == {
    "grefs(unc).json": layout.refs_path.read_bytes(),
    "instances.json": layout.instances_path.read_bytes(),
  }
  assert [p.name for p in root.iterdir()] == ["grefcoco"]


def test_what_the_user_has_is_kept(server, published, tmp_path):
  del server
  folder = tmp_path / "new" / "refer" / "refcoco"
  folder.mkdir(parents=True)
  mine = json.dumps(published.instances | {"mine": 1})
  (folder / "instances.json").write_text(mine)
  download.fetch_missing("refcoco_unc", str(folder.parent), str(published.images))
  assert (folder / "instances.json").read_text() == mine


def test_phrasecut_s_refs_are_fetched_by_its_authors_program(tmp_path):
  with pytest.raises(InputError, match=r"Google Drive.*run `download_dataset\.py.*VGPhraseCut_v0"):
    download.fetch_missing(phrasecut.DATASET, str(tmp_path), str(tmp_path / "images"))


def test_downloads_go_to_this_machine(tmp_path):
  with pytest.raises(InputError, match="--images gs://b/photos: --download writes to this machine"):
    download.fetch_missing("refcoco_unc", str(tmp_path), "gs://b/photos")


@pytest.mark.parametrize("dataset", ["shapes", "jsonl:mine.jsonl", "refer:refer/mine:unc"])
def test_data_sets_that_are_not_published_are_not_downloaded(dataset, capsys):
  with contextlib.suppress(SystemExit):
    prepare.main(["--dataset", dataset, "--data_dir", "data", "--download"])
  assert "--download cannot be used with --dataset" in capsys.readouterr().err


def test_every_published_data_set_has_a_source():
  photos = {"shapes", phrasecut.DATASET}
  assert download.REFS.keys() == storage.CONFIGS.keys() - photos
  assert download.TRAIN2014.archives[0].size == 13_510_573_713
