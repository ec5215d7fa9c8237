"""The protocol of readers, and the reader of each published data set.

To add a data set, write a class with the methods of `Reader` in a module of this folder, name it in
`open_reader` and `locate`, and add it to `storage.CONFIGS`.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from input_pipeline.common.errors import InputError
from input_pipeline.sources import grefer, phrasecut, refer
from input_pipeline.sources.annotated_images import AnnotatedImage

# Proposers that look masks up by COCO's image ids.
_COCO_ONLY = ("coco",)


@runtime_checkable
class Reader(Protocol):
  """The refs of a data set, read from its files and checked against each other."""

  dataset: str
  """Its name on the command line."""
  annotations_path: str
  """The COCO file with the refs' objects and the list of categories; empty without one."""
  splits: dict[str, list[int]]
  """For each split with refs, its image ids, ascending."""

  def coco_ids(self) -> dict[str, list[int]]:
    """Returns, for each split, the COCO ids of the images that are COCO's."""
    ...

  def warning(self) -> str | None:
    """Returns how the data differs from the published data set; None if it does not."""
    ...

  def image_path(self, images: str, image_id: int) -> str:
    """Returns the path of an image in the folder of images."""
    ...

  def annotated_image(self, split: str, image_id: int, images: str) -> AnnotatedImage:
    """Returns an image with its refs in a split.

    Args:
      split: a key of `splits`.
      image_id: one of `splits[split]`.
      images: the folder of images.
    """
    ...


def open_reader(dataset: str, refer_root: str, annotations: str | None = None) -> Reader:
  """Reads the refs of a data set.

  Args:
    dataset: a name in `storage.CONFIGS` other than `shapes`.
    refer_root: the folder that contains the data set's folder.
    annotations: the COCO file with the refs' objects if it is not beside them; not for PhraseCut.

  Raises:
    InputError: a file is missing or damaged, or the files do not belong together.
  """
  if dataset == phrasecut.DATASET:
    return phrasecut.PhraseCutReader(refer_root)
  reader = grefer.GRefReader if dataset in grefer.LAYOUTS else refer.RefReader
  return reader(dataset, refer_root, annotations)


def locate(dataset: str, refer_root: str, annotations: str | None) -> tuple[Sequence[str], str]:
  """Returns the files of the refs, and the file of their annotations or images.

  Raises:
    InputError: one is missing.
  """
  if dataset == phrasecut.DATASET:
    files, images = phrasecut.locate(refer_root)
    return list(files.values()), images
  refs, instances = refer.locate((refer.LAYOUTS | grefer.LAYOUTS)[dataset], refer_root, annotations)
  return [refs], instances


def check_proposer(dataset: str, spec: str) -> None:
  """Checks that a proposer does not look masks up by the ids of other images.

  Raises:
    InputError: the proposer uses COCO's ids, and the data set has others.
  """
  if dataset == phrasecut.DATASET and spec.partition(":")[0] in _COCO_ONLY:
    raise InputError(
      f"--instances {spec}: uses COCO's image ids, but the ids of {dataset} are Visual Genome's; "
      "use a detector (huggingface:, onnx:), its results by Visual Genome's ids (results:), "
      "felzenszwalb or none"
    )
