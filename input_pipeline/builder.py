"""The TFDS builder: examples to TFRecord shards, one record an image.

`python -m input_pipeline.prepare` is the way in. TFDS's own command works as well, from the files
that docs/data.md puts under its manual folder:
`tfds build input_pipeline/builder.py --config refcoco_unc --manual_dir DIR --data_dir D`.
"""

import contextlib
import io
import os
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from absl import logging
from tqdm import tqdm

from input_pipeline import storage
from input_pipeline.errors import InputError
from input_pipeline.instances import leakage, open_provider
from input_pipeline.sources import refer, scene_set


@runtime_checkable
class Source(Protocol):
  """Where examples come from; `splits` holds how many each split has."""

  splits: dict[str, int]

  def examples(self, split: str) -> Iterator[dict[str, Any]]:
    """Yields the examples of a split in a fixed order."""
    ...


def record_features() -> tfds.features.FeaturesDict:
  """Returns the names and types of a record's fields."""
  undecoded = tfds.features.Tensor(shape=(), dtype=np.object_)
  text = tfds.features.Text()
  return tfds.features.FeaturesDict(
    {
      "image": undecoded,  # JPEG or PNG
      "image_id": np.int64,
      "file_name": text,
      "height": np.int32,
      "width": np.int32,
      "instances": undecoded,  # records.encode_planes
      "instance_score": tfds.features.Tensor(shape=(None,), dtype=np.float32),
      "instance_category": tfds.features.Tensor(shape=(None,), dtype=np.int32),
      "instances_from": text,
      "instances_trained_on": text,
      "refs": tfds.features.Sequence(
        {
          "ref_id": np.int64,
          "ann_ids": tfds.features.Sequence(np.int64),
          "target": undecoded,  # records.encode_target
          "sentences": tfds.features.Sequence(text),
          "normalised": tfds.features.Sequence(text),
        }
      ),
    }
  )


class ReferringSegmentation(tfds.core.GeneratorBasedBuilder):
  """Images, instance masks, and expressions with the mask that they mean."""

  name = storage.BUILDER_NAME
  VERSION = tfds.core.Version(storage.VERSION)
  BUILDER_CONFIGS: ClassVar = [
    tfds.core.BuilderConfig(name=config) for config in storage.CONFIGS.values()
  ]
  MANUAL_DOWNLOAD_INSTRUCTIONS = (
    "Put refcoco/, refcoco+/ and refcocog/ into refer/, and the COCO photos into train2014/; "
    "docs/data.md says where to get them."
  )

  # Nothing is downloaded; and TFDS's search for checksums needs a package that it does not declare.
  url_infos = None

  def __init__(
    self,
    *,
    source: Source | None = None,
    arguments: Mapping[str, Any] | None = None,
    provenance: Mapping[str, Any] | None = None,
    **kwargs: Any,
  ):
    """Makes the builder.

    Args:
      source: where examples come from; by default what lies in TFDS's manual folder, or generated
        scenes.
      arguments: what the source was made from, kept in the data set's metadata.
      provenance: what the metadata is to say besides, `leakage.provenance`.
      **kwargs: `data_dir` and `config`, as TFDS has them.
    """
    self._source = source
    self._made_from = tfds.core.MetadataDict(
      arguments=dict(arguments or {}), counts={}, **(provenance or {})
    )
    super().__init__(**kwargs)

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(builder=self, features=record_features(), metadata=self._made_from)

  def _split_generators(self, dl_manager: tfds.download.DownloadManager):
    if self._source is None:
      assert self.builder_config is not None
      self._source, arguments, provenance = _default_source(self.builder_config.name, dl_manager)
      self._made_from["arguments"].update(arguments)
      self._made_from.update(provenance)
    return {split: self._generate_examples(split) for split in self._source.splits}

  def _generate_examples(self, split: str):
    assert self._source is not None
    counts = {"records": 0, "refs": 0, "sentences": 0}
    examples = self._source.examples(split)
    total = self._source.splits[split]
    # disable=None: no progress bar where nobody watches.
    for fields in tqdm(examples, desc=split, total=total, unit=" images", disable=None):
      counts["records"] += 1
      counts["refs"] += len(fields["refs"])
      counts["sentences"] += sum(len(ref["sentences"]) for ref in fields["refs"])
      yield fields["image_id"], fields
    self._made_from["counts"][split] = counts


def _default_source(
  config: str, dl_manager: tfds.download.DownloadManager
) -> tuple[Source, dict[str, Any], dict[str, Any]]:
  """The source for TFDS's own command, which takes no arguments of ours; its arguments and provenance."""
  (name,) = (name for name, legal in storage.CONFIGS.items() if legal == config)
  if name == "shapes":
    scenes = scene_set.SceneSet()
    return scenes, {}, leakage.of_scenes(scenes.splits)
  manual = os.fspath(dl_manager.manual_dir)
  reader = refer.RefReader(name, os.path.join(manual, "refer"))
  provider = open_provider(f"coco:{reader.annotations_path}")
  source = refer.ReferSet(reader, os.path.join(manual, "train2014"), provider)
  provenance = leakage.provenance("coco", leakage.parse(provider.trained_on), reader.splits)
  arguments = {"refs": storage.fingerprint(reader.refs_path), "instances": "coco"}
  return source, arguments, provenance


def write_dataset(
  data_dir: str,
  name: str,
  source: Source,
  arguments: Mapping[str, Any],
  provenance: Mapping[str, Any],
) -> None:
  """Writes a data set to `data_dir`: all of it, or nothing after an error or interrupt.

  Args:
    data_dir: made if it is not there; a data set of that name in it is replaced.
    name: of the data set, as users know it.
    source: where examples come from.
    arguments: what the source was made from, kept in the metadata.
    provenance: what the metadata is to say besides, `leakage.provenance`.
  """
  tfds.disable_progress_bar()  # It counts shards; ours counts images.
  with storage.staging(data_dir, name) as folder:
    builder = ReferringSegmentation(
      source=source,
      arguments=arguments,
      provenance=provenance,
      config=storage.CONFIGS[name],
      data_dir=folder,
    )
    with _quiet_tfds():
      builder.download_and_prepare()


@contextlib.contextmanager
def _quiet_tfds() -> Iterator[None]:
  """Keeps TFDS from announcing the folder that is about to be renamed, and its own deprecations."""
  verbosity = logging.get_verbosity()
  logging.set_verbosity(logging.ERROR)
  try:
    with contextlib.redirect_stdout(io.StringIO()):
      yield
  finally:
    logging.set_verbosity(verbosity)


def open_dataset(data_dir: str, name: str) -> tfds.core.DatasetBuilder:
  """Opens a prepared data set for reading; its `info.metadata["counts"]` has sizes of splits.

  Args:
    data_dir: what `prepare` was given.
    name: of the data set, as users know it, such as `refcoco+_unc`.

  Raises:
    InputError: there is no such data set; the message names the command that makes it.
  """
  folder = storage.dataset_dir(data_dir, name)
  if not tf.io.gfile.exists(os.path.join(folder, "dataset_info.json")):
    raise InputError(
      f"--data_dir {data_dir}: {name} is not prepared there; run "
      f"`python -m input_pipeline.prepare --dataset {name} --data_dir {data_dir}` first "
      "(docs/data.md has its other arguments)"
    )
  return tfds.builder_from_directory(folder)
