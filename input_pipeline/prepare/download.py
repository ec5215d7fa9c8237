"""Fetches the files that published data sets need: `prepare --download`.

A file is used only if its size, its checksum and the data set's published counts are right, as far
as they are known.
"""

import contextlib
import dataclasses
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence

from input_pipeline.common import atomic_files, buckets, hub
from input_pipeline.common.errors import InputError
from input_pipeline.common.terminal import counted
from input_pipeline.prepare import transfer
from input_pipeline.prepare.transfer import File
from input_pipeline.sources import phrasecut, readers, refer, refer_tables


@dataclasses.dataclass(frozen=True)
class Photos:
  """The zip archives with the photos of a data set."""

  archives: tuple[File, ...]
  count: int
  """Photos in all archives, as published, or more."""


@dataclasses.dataclass(frozen=True)
class HubFiles:
  """Refs and annotations on the Hugging Face Hub as `refer` lays them out."""

  repository: str

  def __str__(self) -> str:
    return f"the Hub's {self.repository}"


@dataclasses.dataclass(frozen=True)
class HubTables:
  """Refs on the Hugging Face Hub as parquet tables; see `refer_tables`."""

  repository: str

  def __str__(self) -> str:
    return f"the Hub's {self.repository}"


@dataclasses.dataclass(frozen=True)
class Archive:
  """A zip archive with refs and annotations as `refer` lays them out."""

  file: File

  def __str__(self) -> str:
    return "the archived copy"


Source = HubFiles | HubTables | Archive

# Sizes and checksums are those that TFDS publishes in `url_checksums`; numbers of photos are COCO's
# and Visual Genome's, whose archives have some photos more.
TRAIN2014 = Photos(
  (
    File(
      "http://images.cocodataset.org/zips/train2014.zip",
      13_510_573_713,
      "ede4087e640bddba550e090eae701092534b554b42b05ac33f0300b984b31775",
    ),
  ),
  82_783,
)
VISUAL_GENOME = Photos(
  (
    File(
      "https://cs.stanford.edu/people/rak248/VG_100K_2/images.zip",
      9_731_705_982,
      "51c682d2721f880150720bb416e0346a4c787e4c55d7f80dfd1bd3f73ba81646",
    ),
    File(
      "https://cs.stanford.edu/people/rak248/VG_100K_2/images2.zip",
      5_471_658_058,
      "99da1a0ddf87011319ff3b05cf9176ffee2731cc3c52951162d9ef0d68e3cfb5",
    ),
  ),
  108_077,
)
COCO_ANNOTATIONS = File(
  "http://images.cocodataset.org/annotations/annotations_trainval2014.zip",
  252_872_794,
  "031296bbc80c45a1d1f76bf9a90ead27e94e99ec629208449507a4917a3bf009",
)
_ARCHIVED = "https://web.archive.org/web/{}/https://bvisionweb1.cs.unc.edu/licheng/referit/data/{}"
_REFCOCOG = Archive(File(_ARCHIVED.format("20220413012904", "refcocog.zip")))
REFS: Mapping[str, Sequence[Source]] = {
  "refcoco_unc": (
    HubTables("jxu124/refcoco"),
    Archive(File(_ARCHIVED.format("20220413011718", "refcoco.zip"))),
  ),
  "refcoco+_unc": (
    HubTables("jxu124/refcocoplus"),
    Archive(File(_ARCHIVED.format("20220413011656", "refcoco+.zip"))),
  ),
  "refcocog_umd": (HubTables("jxu124/refcocog"), _REFCOCOG),
  "refcocog_google": (_REFCOCOG,),
  "grefcoco_unc": (HubFiles("FudanCVL/gRefCOCO"),),
}
"""Where refs and their annotations come from, in the order in which the sources are tried."""

_TRAIN2014_LIST = "annotations/instances_train2014.json"
_PHRASECUT = "https://github.com/ChenyunWu/PhraseCutDataset"


def fetch_missing(dataset: str, refer_root: str, images: str) -> None:
  """Fetches the refs, annotations and photos of a data set that are not there yet.

  Args:
    dataset: a key of REFS, or PhraseCut, of which only the photos can be fetched.
    refer_root: as for `readers.open_reader`.
    images: the folder of the photos; it is taken for complete unless it is missing, empty, or
      beside a download that was interrupted.

  Raises:
    InputError: a file cannot be had, or is not what was published; nothing wrong is left.
  """
  hub.check_installed("--download")
  for option, path in (("--refer_root", refer_root), ("--images", images)):
    if buckets.is_remote(path):
      raise InputError(f"{option} {path}: --download writes to this machine; name a folder here")
  if dataset in REFS:
    if not _is_there(dataset, refer_root):
      _fetch_refs(dataset, refer_root)
  elif not _is_there(dataset, refer_root):
    raise InputError(
      f"--download: the refs of {dataset} are on Google Drive, which offers no direct download; "
      f"run `download_dataset.py --download_img 0` of {_PHRASECUT} and move its files to "
      f"{os.path.join(refer_root, phrasecut.FOLDER)}"
    )
  _fetch_photos(VISUAL_GENOME if dataset == phrasecut.DATASET else TRAIN2014, pathlib.Path(images))


def _is_there(dataset: str, refer_root: str) -> bool:
  try:
    readers.locate(dataset, refer_root, None)
  except InputError:
    return False
  return True


def _fetch_refs(dataset: str, refer_root: str) -> None:
  """Fetches refs and annotations from the first source that has the published data set."""
  layout, reasons = refer.LAYOUTS[dataset], []
  folder = pathlib.Path(refer_root, layout.folder)
  downloads = pathlib.Path(refer_root, f".download-{layout.folder}")
  for source in REFS[dataset]:
    print(f"{dataset}: downloading refs and annotations from {source}")
    try:
      with _new_folder(folder.parent) as new:
        _fetch_from(source, dataset, downloads, new / layout.folder)
        _check_counts(dataset, str(new))
        folder.mkdir(parents=True, exist_ok=True)
        for path in sorted((new / layout.folder).iterdir()):
          # What the user has is kept.
          if not (folder / path.name).exists():
            os.replace(path, folder / path.name)
      shutil.rmtree(downloads, ignore_errors=True)
      return
    except InputError as error:
      reasons.append(f"{source}: {error}")
      print(f"{dataset}: not from {source}: {error}")
  raise InputError(
    f"--download: the refs of {dataset} cannot be had ({'; '.join(reasons)}); download "
    f"{layout.refs_file} and instances.json by hand to {folder} (docs/guides/datasets.md lists "
    "copies)"
  )


def _fetch_from(
  source: Source,
  dataset: str,
  downloads: pathlib.Path,
  target: pathlib.Path,
) -> None:
  """Writes the refs file and `instances.json` of a source to a folder."""
  names = refer.LAYOUTS[dataset].refs_file, "instances.json"
  target.mkdir(parents=True)
  if isinstance(source, HubTables):
    tables = transfer.fetch_from_hub(source.repository, ["*.parquet"], downloads)
    coco = _coco_annotations(downloads.parent)
    stem = os.path.splitext(names[0])[0]
    refer_tables.convert(tables, str(coco), dataset, str(target / f"{stem}.json"))
    try:
      os.link(coco, target / names[1])
    except OSError:  # a file system without links
      shutil.copyfile(coco, target / names[1])
  elif isinstance(source, HubFiles):
    for path in transfer.fetch_from_hub(source.repository, names, downloads):
      shutil.move(path, target)
  else:
    archive = downloads / source.file.url.rpartition("/")[2]
    transfer.fetch(source.file, archive)
    transfer.extract(archive, target, names)


def _coco_annotations(folder: pathlib.Path) -> pathlib.Path:
  """Returns COCO's annotations of train2014 in a folder, where several data sets share them."""
  path = folder / _TRAIN2014_LIST.rpartition("/")[2]
  if not path.exists():
    archive = folder / COCO_ANNOTATIONS.url.rpartition("/")[2]
    transfer.fetch(COCO_ANNOTATIONS, archive)
    transfer.extract(archive, folder, [_TRAIN2014_LIST])
    archive.unlink()
  return path


def _check_counts(dataset: str, refer_root: str) -> None:
  """Checks the refs against their annotations, and their numbers against the published ones."""
  reader = refer.RefReader(dataset, refer_root)
  if difference := reader.difference():
    raise InputError(difference)


@contextlib.contextmanager
def _new_folder(parent: pathlib.Path) -> Iterator[pathlib.Path]:
  try:
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=atomic_files.STAGING, dir=parent) as new:
      yield pathlib.Path(new)
  except OSError as error:
    raise InputError(f"{parent}: {atomic_files.describe_error(error, parent)}") from error


def _fetch_photos(photos: Photos, folder: pathlib.Path) -> None:
  archives = [
    folder.with_name(f"{folder.name}-{file.url.rpartition('/')[2]}") for file in photos.archives
  ]
  interrupted = any(path.exists() or transfer.part_of(path).exists() for path in archives)
  if not interrupted and folder.is_dir() and any(folder.iterdir()):
    return
  for file, archive in zip(photos.archives, archives, strict=True):
    print(f"downloading {file.url} to {archive}")
    transfer.fetch(file, archive)
  for archive in archives:
    print(f"unpacking {archive} to {folder}")
    transfer.extract(archive, folder)
  count = sum(path.suffix.lower() == ".jpg" for path in folder.iterdir())
  if count < photos.count:
    raise InputError(
      f"--images {folder}: {counted(count, 'photo')} after unpacking {archives[0]}, but "
      f"{photos.count:,} are published; empty the folder and run the command again"
    )
  for archive in archives:
    archive.unlink()
