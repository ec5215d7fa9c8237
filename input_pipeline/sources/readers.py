"""The data sets of photos by their names: who reads the files of which."""

from collections.abc import Sequence

from input_pipeline.common.errors import InputError
from input_pipeline.sources import grefer, phrasecut, refer
from input_pipeline.sources.image_source import Reader

# Providers whose masks are looked up by COCO's ids, in a file that has no others.
_COCO_ONLY = ("coco",)


def open_reader(dataset: str, refer_root: str, annotations: str | None = None) -> Reader:
  """Reads the refs of a data set.

  Args:
    dataset: a name of `storage.CONFIGS`, but `shapes`.
    refer_root: the folder that holds the data set's own.
    annotations: the COCO file with the refs' objects, where it is not beside them; none for PhraseCut.

  Raises:
    InputError: a file is missing or damaged, or the files do not belong together.
  """
  if dataset == phrasecut.DATASET:
    return phrasecut.PhraseCutReader(refer_root)
  kind = grefer.GRefReader if dataset in grefer.LAYOUTS else refer.RefReader
  return kind(dataset, refer_root, annotations)


def locate(dataset: str, refer_root: str, annotations: str | None) -> tuple[Sequence[str], str]:
  """Returns the files of the refs, and that of their annotations or images.

  Raises:
    InputError: one is missing.
  """
  if dataset == phrasecut.DATASET:
    files, images = phrasecut.locate(refer_root)
    return list(files.values()), images
  refs, instances = refer.locate((refer.LAYOUTS | grefer.LAYOUTS)[dataset], refer_root, annotations)
  return [refs], instances


def check_proposer(dataset: str, spec: str) -> None:
  """Refuses masks that are looked up by the ids of other photos.

  Raises:
    InputError: the proposer knows COCO's ids alone, and the photos have others.
  """
  if dataset == phrasecut.DATASET and spec.partition(":")[0] in _COCO_ONLY:
    raise InputError(
      f"--instances {spec}: it finds photos by COCO's ids, and those of {dataset} are Visual Genome's; take a detector "
      "(huggingface:, onnx:), its results by Visual Genome's ids (results:), felzenszwalb or none"
    )
