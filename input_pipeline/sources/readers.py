"""The data sets of published refs by name, and which reader reads their files."""

from collections.abc import Sequence

from input_pipeline.common.errors import InputError
from input_pipeline.sources import grefer, phrasecut, refer
from input_pipeline.sources.image_source import Reader

# Proposers that look masks up by COCO's image ids.
_COCO_ONLY = ("coco",)


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
