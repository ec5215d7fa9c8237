"""Paths in data sets and checkpoints stay inside their folder: no `..`, and no links out of it.

Links are followed in a folder that the user names with --images.
"""

import hashlib
import json
import os

import pytest
import refer_layout
from custom_files import line, write_coco, write_lines, write_photo
from etils import epath
from hypothesis import given
from hypothesis import strategies as st

from input_pipeline import preprocess
from input_pipeline.common import untrusted_files
from input_pipeline.common.errors import InputError
from input_pipeline.custom import scan
from input_pipeline.sources import annotated_images, refer
from mail_jax.checkpoints import manifest
from mail_jax.export import folder as exported_folder
from mail_jax.predict import inputs


@pytest.fixture
def places(tmp_path):
  """A folder with an image, a secret beside it, and links to it."""
  root, secret = tmp_path / "root", tmp_path / "secret.png"
  write_photo(root / "a.png")
  write_photo(secret, seed=1)
  (root / "link.png").symlink_to(secret)
  (root / "above").symlink_to(tmp_path)
  return root, secret


def leading_out(places) -> list[str]:
  return [
    "../secret.png",
    "x/../../secret.png",
    str(places[1]),
    "link.png",
    "above/secret.png",
    "..",
    "",
    "a\0",
    "\ud800",
  ]


def test_paths_that_lead_out_are_refused(places):
  for path in leading_out(places):
    with pytest.raises(InputError, match="it "):
      untrusted_files.resolve_inside(str(places[0]), path, "it")
  for path in ("a.png", "./a.png", "x/../a.png", "above/root/a.png", "new/b.png"):
    actual = untrusted_files.resolve_inside(str(places[0]), path, "it")
    assert actual.startswith(str(places[0].resolve()) + "/")


@given(
  st.lists(
    st.sampled_from(["..", ".", "a", "a.png", "link.png", "above", "root", "", "/"]),
    min_size=1,
    max_size=7,
  )
)
def test_what_is_inside_is_inside(tmp_path_factory, parts):
  root = _shared(tmp_path_factory)
  try:
    actual = untrusted_files.resolve_inside(str(root), "/".join(parts), "it")
  except InputError:
    return
  assert root in [epath.Path(actual), *epath.Path(actual).parents]
  # With links followed it is the same place, or a link leads there; it is never beyond the folder.
  path = untrusted_files.resolve_inside(str(root), "/".join(parts), "it", follow_links=True)
  assert root in [epath.Path(path), *epath.Path(path).parents]


_SHARED: list[epath.Path] = []


def _shared(factory) -> epath.Path:
  if not _SHARED:
    base = factory.mktemp("shared").resolve()
    (base / "root" / "a").mkdir(parents=True)
    (base / "root" / "link.png").symlink_to(base / "secret.png")
    (base / "root" / "above").symlink_to(base)
    _SHARED.append(epath.Path(base / "root"))
  return _SHARED[0]


@pytest.mark.parametrize("field", ["image", "target"])
def test_lines_cannot_name_files_outside(places, field):
  root, _ = places
  for path in leading_out(places)[:5]:
    row = line(path) if field == "image" else line(target={"png": path})
    actual = scan.scan(write_lines(root / "mine.jsonl", row))
    assert [problem.kind for problem in actual.problems] == ["path outside the folder"], path


@pytest.mark.parametrize("field", ["image", "target"])
def test_links_are_followed_where_the_user_names_the_folder(places, field):
  root, secret = places
  for path in ("link.png", "above/secret.png"):
    row = line(path) if field == "image" else line(target={"png": path})
    lines = write_lines(root / "mine.jsonl", row)
    (problem,) = scan.scan(lines).problems
    assert "by a link; to follow links, name the folder with --images" in problem.message
    actual = scan.scan(lines, str(root))
    assert "path outside the folder" not in [problem.kind for problem in actual.problems]
    assert os.path.samefile(actual.paths.resolve(path), secret)
  for path in ("../secret.png", "above/../../secret.png", str(secret)):
    row = line(path) if field == "image" else line(target={"png": path})
    actual = scan.scan(write_lines(root / "mine.jsonl", row), str(root))
    assert [problem.kind for problem in actual.problems] == ["path outside the folder"], path


def test_lines_cannot_name_annotations_outside(places):
  root, _ = places
  write_coco(root.parent / "coco.json")
  (root / "coco.json").symlink_to(root.parent / "coco.json")
  for path in ("../coco.json", str(root.parent / "coco.json"), "coco.json", "above/coco.json"):
    actual = scan.scan(
      write_lines(root / "mine.jsonl", line(annotations=path, target={"ann_id": 7}))
    )
    assert "path outside the folder" in [problem.kind for problem in actual.problems], path


SECRETS = [
  b"root:x:0:0:SECRET:/root\nSECRET\n",
  b'{"SECRET": "SECRET", "images": ["SECRET"], "annotations": [SECRET]}',
  b'{"images": [{"id": 1, "SECRET": 1}, SECRET',
  b"\x89PNG\r\n\x1a\nSECRET",
  b"\xff\xfeS\0E\0C\0R\0E\0T\0",
]


@pytest.mark.parametrize("secret", SECRETS, ids=range(len(SECRETS)))
@pytest.mark.parametrize("key", ["image", "png", "annotations"])
def test_nothing_of_a_file_that_a_line_names_is_printed_if_it_is_refused(places, key, secret):
  root, _ = places
  (root / "private").write_bytes(secret)
  mask = {"png": "private"} if key == "png" else {"ann_id": 7}
  row = line(target=mask, instances=[mask], **({key: "private"} if key != "png" else {}))
  path = write_lines(root / "mine.jsonl", row)
  messages = [str(problem) for problem in scan.scan(path).problems]
  with pytest.raises(InputError) as caught:
    read = inputs.from_jsonl(path, None)
    pixels = preprocess.open_image(read.items[0].path)
    proposer = read.make_proposer(read.items[0], pixels)
    assert proposer is not None
    proposer.propose([pixels], [0])
  messages.append(str(caught.value))
  for message in messages:
    assert "SECRET" not in message
    assert "\n" not in message


@pytest.mark.parametrize("dataset", ["refcoco_unc", "grefcoco_unc"])
def test_image_names_in_annotations_stay_inside(tmp_path, dataset):
  layout = refer_layout.make_layout(tmp_path, dataset)
  secret = tmp_path / "secret.jpg"
  secret.write_bytes(layout.image_path(0).read_bytes())
  image_id = layout.instances["images"][0]["id"]
  for name in ("../secret.jpg", str(secret), "..", "a/../../secret.jpg", "..\\secret.jpg"):
    layout.instances["images"][0]["file_name"] = name
    layout.write()
    reader = refer.RefReader(dataset, str(layout.root))
    with pytest.raises(InputError, match="no image named"):
      reader.image_path(str(layout.images), image_id)
    with pytest.raises(InputError, match="no image named"):
      annotated_images.RecordMaker("none")(
        {"images": [vars(reader.annotated_image("train", image_id, str(layout.images)))]}
      )


def test_links_that_the_user_puts_among_the_images_are_followed(places):
  root, secret = places
  (root / "7.jpg").symlink_to(secret)
  finder = annotated_images.ImageFinder()
  assert os.path.samefile(finder.path(str(root), "7.jpg"), secret)


@pytest.mark.parametrize(
  "name", ["../secret", "/etc/hostname", "a/../../secret", "C:/x", "..\\secret", ""]
)
def test_manifests_and_exported_folders_cannot_name_files_outside(tmp_path, name):
  (tmp_path / "secret").write_bytes(b"secret")
  sums = [6, hashlib.sha256(b"secret").hexdigest()]
  folder = epath.Path(tmp_path / "checkpoint")
  folder.mkdir()
  manifest._write(folder, {"files": {name: sums}, "about": {}})
  with pytest.raises(manifest.DamagedError, match="is outside the checkpoint"):
    manifest.check(folder)
  about = {
    "format": exported_folder.FORMAT,
    "format_version": 1,
    "config": {},
    "step": 1,
    "metrics": {},
    "tokenizer": {},
  }
  (folder / exported_folder.ABOUT).write_text(json.dumps(about | {"files": {name: sums}}))
  with pytest.raises(InputError, match="points outside the folder"):
    exported_folder.read_about(folder)
