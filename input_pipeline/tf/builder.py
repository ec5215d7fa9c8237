"""The TFDS builder: examples to TFRecord shards, one record per image.

Usually run by `python -m input_pipeline.prepare`. TFDS's own command works as well, where the
packages apache-beam and mlcroissant are installed, which it imports, and with the files of
docs/guides/datasets.md in its manual folder:
`tfds build input_pipeline/tf/builder.py --config refcoco_unc --manual_dir DIR --data_dir D`.
"""

import collections
import concurrent.futures
import contextlib
import errno
import functools
import io
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from input_pipeline import image_hashes, storage
from input_pipeline.common import fingerprint, parallel
from input_pipeline.common.errors import InputError
from input_pipeline.common.terminal import announce, progress_bar
from input_pipeline.proposers import leakage
from input_pipeline.sources import annotated_images, phrasecut, readers, scene_source
from input_pipeline.sources.source import SkippedImage, Source, TaskResult
from input_pipeline.tf import tfds_settings

tfds_settings.apply()


def record_features() -> tfds.features.FeaturesDict:
  """Returns the names and types of a record's fields."""
  encoded = tfds.features.Tensor(shape=(), dtype=np.object_)
  text = tfds.features.Text()
  return tfds.features.FeaturesDict(
    {
      "image": encoded,  # JPEG or PNG
      "image_id": np.int64,
      "file_name": text,
      "height": np.int32,
      "width": np.int32,
      "instances": encoded,  # bit_planes.encode_png
      "instance_score": tfds.features.Tensor(shape=(None,), dtype=np.float32),
      "instance_category": tfds.features.Tensor(shape=(None,), dtype=np.int32),
      "instances_from": text,
      "instances_trained_on": text,
      "refs": tfds.features.Sequence(
        {
          "ref_id": np.int64,
          "ann_ids": tfds.features.Sequence(np.int64),
          "target": encoded,  # records.encode_target
          "sentences": tfds.features.Sequence(text),
          "normalised": tfds.features.Sequence(text),
        }
      ),
    }
  )


class _Info(tfds.core.DatasetInfo):
  """Metadata of a data set."""

  def initialize_from_bucket(self) -> None:
    """Reads nothing from TFDS's own bucket, which has none of our data sets."""


class ReferringSegmentation(tfds.core.GeneratorBasedBuilder):
  """Images, instance masks, and expressions with the mask of their target."""

  name = storage.BUILDER_NAME
  VERSION = tfds.core.Version(storage.VERSION)
  BUILDER_CONFIGS: ClassVar = [
    tfds.core.BuilderConfig(name=config) for config in storage.CONFIGS.values()
  ]
  MANUAL_DOWNLOAD_INSTRUCTIONS = (
    "Put refcoco/, refcoco+/, refcocog/, grefcoco/ or VGPhraseCut_v0/ into refer/, and the COCO "
    "images into train2014/; docs/guides/datasets.md has the sources."
  )

  # Nothing is downloaded, and TFDS's search for checksums needs a package that it does not declare.
  url_infos = None

  def __init__(
    self,
    *,
    source: Source | None = None,
    arguments: Mapping[str, Any] | None = None,
    results: Callable[[str], Iterable[TaskResult]] | None = None,
    **kwargs: Any,
  ):
    """Creates the builder.

    Args:
      source: of the examples; by default the files in TFDS's manual folder, or generated scenes.
      arguments: that the source was made from, kept in the data set's metadata.
      results: of the tasks of a split, if a cluster has done them; otherwise `source.workers`
        processes do.
      **kwargs: `data_dir` and `config`, passed to TFDS.
    """
    self._source, self._results = source, results
    self._provenance = tfds.core.MetadataDict(
      arguments=dict(arguments or {}), counts={}, skipped={}, notes={}
    )
    self._provenance.update(source.provenance if source else {})
    self.seconds: dict[str, float] = {}
    """Time per image for instance masks, by split."""
    self.hashes: dict[str, image_hashes.ImageSet] = {}
    """Hashes of the images, by split."""
    self.writing = contextlib.ExitStack()
    """Open while TFDS sorts and writes the records of a split, after they were made."""
    super().__init__(**kwargs)

  def _info(self) -> tfds.core.DatasetInfo:
    return _Info(builder=self, features=record_features(), metadata=self._provenance)

  def _split_generators(self, dl_manager: tfds.download.DownloadManager):
    if self._source is None:
      assert self.builder_config is not None
      self._source, arguments = _default_source(self.builder_config.name, dl_manager)
      self._provenance["arguments"].update(arguments)
      self._provenance.update(self._source.provenance)
    results = self._results
    if results is None:
      pool = parallel.start_workers(self._source.workers) if self._source.workers > 1 else None
      results = functools.partial(self._make, pool)
    return {split: self._generate_examples(results(split), split) for split in self._source.splits}

  def _make(self, pool: concurrent.futures.Executor | None, split: str) -> Iterable[TaskResult]:
    assert self._source is not None
    tasks = self._source.tasks(split)
    if pool is None:
      return map(self._source.make, tasks)
    return parallel.ordered_map(pool, self._source.make, tasks, 3 * self._source.workers)

  def _generate_examples(self, done: Iterable[TaskResult], split: str):
    assert self._source is not None
    counts, skipped, seconds, hashes = TaskResult([]).counts(), [], 0.0, []
    notes = collections.Counter()
    self.writing.close()
    with progress_bar(split, self._source.splits[split], "images") as bar:
      for result in done:
        counts = {name: counts[name] + number for name, number in result.counts().items()}
        skipped += result.skipped
        seconds += result.seconds
        hashes += result.hashes
        notes.update(result.notes)
        for fields in result.records:
          yield fields["image_id"], fields
        bar.update(len(result.records) + len(result.skipped))
    if not counts["records"]:
      raise InputError(f"{split}: every image was skipped; the last: {skipped[-1].reason}")
    self._note(split, counts, skipped, seconds, notes)
    self.writing.enter_context(announce(f"writing the records of {split}"))
    self.hashes[split] = image_hashes.ImageSet.of(hashes, self._source.coco_ids[split])

  def _note(
    self,
    split: str,
    counts: dict[str, int],
    skipped: list[SkippedImage],
    seconds: float,
    notes: Mapping[str, int],
  ) -> None:
    self._provenance["counts"][split] = counts
    if notes:
      self._provenance["notes"][split] = dict(sorted(notes.items()))
    if skipped:
      rows = sorted((row.image_id, row.reason) for row in skipped)
      self._provenance["skipped"][split] = [list(row) for row in rows]
    if seconds:  # generated scenes have no proposer whose time is measured
      self.seconds[split] = seconds / max(1, counts["records"])


def _default_source(
  config: str, dl_manager: tfds.download.DownloadManager
) -> tuple[Source, dict[str, Any]]:
  """Returns the source for TFDS's own command, which takes no arguments of ours."""
  (name,) = (name for name, legal in storage.CONFIGS.items() if legal == config)
  if name == "shapes":
    return scene_source.SceneSource(), {}
  manual = os.fspath(dl_manager.manual_dir)
  root, images = os.path.join(manual, "refer"), os.path.join(manual, "train2014")
  if name == phrasecut.DATASET:
    images = os.path.join(root, phrasecut.FOLDER, "images")
  reader = readers.open_reader(name, root)
  # Masks are made from COCO's annotations, which not every data set has.
  proposer, argument, trained_on = (
    ("coco", f":{reader.annotations_path}", "ground-truth")
    if reader.annotations_path
    else ("none", "", "nothing")
  )
  make = annotated_images.RecordMaker(proposer + argument)
  provenance = leakage.provenance(
    proposer, leakage.TrainedOn(trained_on), reader.splits, reader.coco_ids()
  )
  provenance |= reader.more_metadata()
  refs, _ = readers.locate(name, root, None)
  arguments = {"refs": ",".join(map(fingerprint.of_file, refs)), "instances": proposer}
  return readers.ImageSource(reader, images, make, provenance), arguments


def write_dataset(
  data_dir: str,
  name: str,
  source: Source,
  arguments: Mapping[str, Any],
  beam_options: str | None = None,
) -> None:
  """Writes a data set to `data_dir`, whole or not at all.

  Args:
    data_dir: created if it is missing; a data set of that name in it is replaced. With Beam on
      several machines, a folder that all of them see under this name.
    name: of the data set.
    source: of the examples.
    arguments: that the source was made from, kept in the metadata.
    beam_options: options of an Apache Beam pipeline that makes the examples; None for processes of
      this machine.
  """
  tfds.disable_progress_bar()  # it counts shards; ours counts images
  with storage.staging(data_dir, name) as folder:
    results = None
    if beam_options is not None:
      from input_pipeline.sources import beam  # needs a package that is not required

      with announce("making the records on Beam"):
        results = beam.do_tasks(source, folder, beam_options)
    with _quiet_tfds():
      builder = ReferringSegmentation(
        source=source,
        arguments=arguments,
        results=results,
        config=_config(name),
        data_dir=folder,
      )
    with _quiet_tfds(), _clear_errors(), builder.writing:
      builder.download_and_prepare(download_config=tfds.download.DownloadConfig())
    storage.write_timing(folder, name, builder.seconds)
    storage.write_hashes(folder, name, builder.hashes)


def _config(name: str) -> tfds.core.BuilderConfig | str:
  """Returns TFDS's config of a data set; custom data gets a new one."""
  legal = storage.config_name(name)
  known = storage.CONFIGS.values()
  return legal if legal in known else tfds.core.BuilderConfig(name=legal)


@contextlib.contextmanager
def _clear_errors() -> Iterator[None]:
  """Raises an OSError for a full disk."""
  try:
    yield
  except Exception as error:
    if "No space left on device" in str(error):  # TensorFlow's own error
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
    raise


@contextlib.contextmanager
def _quiet_tfds() -> Iterator[None]:
  """Silences TFDS's own deprecations, and its message about the temporary folder."""
  verbosity = logging.get_verbosity()
  logging.set_verbosity(logging.ERROR)
  try:
    with contextlib.redirect_stdout(io.StringIO()):
      yield
  finally:
    logging.set_verbosity(verbosity)


def open_dataset(data_dir: str, name: str) -> tfds.core.DatasetBuilder:
  """Opens a prepared data set; its `info.metadata["counts"]` has the sizes of the splits.

  Args:
    data_dir: the folder that `prepare` wrote to.
    name: of the data set, such as `refcoco+_unc`.

  Raises:
    InputError: there is no such data set; the message names the command that prepares it.
  """
  folder = storage.open_dir(data_dir, name)
  if not (folder / "dataset_info.json").exists():
    raise storage.not_prepared(data_dir, name)
  return tfds.builder_from_directory(folder)
