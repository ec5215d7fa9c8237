"""Which expression of a split each prediction in a file is for."""

import collections
import dataclasses
from collections.abc import Iterable, Sequence

from input_pipeline import preprocess
from input_pipeline.common.errors import InputError
from input_pipeline.common.image_names import ImageNames, ImageNotFound
from input_pipeline.common.terminal import counted
from mail_jax.evaluate.predictions import Prediction

_IMAGES = ("image", "file_name", "image_id")
_TEXTS = ("expression", "sentence", "sent")
_SHOWN = 3


@dataclasses.dataclass(frozen=True)
class Question:
  """An expression of a split.

  Attributes:
    data: DATASET/SPLIT.
    image_id, file_name, ref_id, expression_index, expression: as in a row per expression.
  """

  data: str
  image_id: int
  file_name: str
  ref_id: int
  expression_index: int
  expression: str

  def __str__(self) -> str:
    return f"{self.data}, ref {self.ref_id}, expression {self.expression_index}"


def match(
  predictions: Sequence[Prediction], questions: Sequence[Question], name: str
) -> list[Prediction | None]:
  """Returns the prediction for each question, None where there is none.

  A prediction names a ref and one of its expressions (by `expression_index`, the text, or
  `sent_id`), or an image and an expression; the latter answers every question with that image and
  that text.

  Args:
    predictions: from one file or folder.
    questions: all expressions of the evaluated splits.
    name: of the file, for error messages.

  Raises:
    InputError: a prediction is for none of the questions or may be for several, or two are for one.
  """
  index = _Index(questions, predictions)
  answers: list[Prediction | None] = [None] * len(questions)
  unknown: list[InputError] = []
  for prediction in predictions:
    try:
      asked = index.find(prediction)
    except _Unknown as error:
      unknown.append(error)
      continue
    for number in asked:
      earlier = answers[number]
      if earlier is not None and not _agree(earlier, prediction):
        raise InputError(
          f"{prediction.where}: a second prediction for {questions[number]}, after that of "
          f"{earlier.where}; leave one out, or tell them apart by ref_id and expression_index"
        )
      answers[number] = prediction
  if unknown:
    data = ", ".join(dict.fromkeys(question.data for question in questions))
    raise InputError(
      f"{name}: {len(unknown):,} of {counted(len(predictions), 'prediction')} are not for "
      f"{data}; the first: {unknown[0]}"
    )
  return answers


def missing(answers: Sequence[Prediction | None], questions: Sequence[Question]) -> str:
  """Returns how many questions have no answer and which are the first; empty if all have one."""
  left = [question for question, answer in zip(questions, answers, strict=True) if answer is None]
  if not left:
    return ""
  shown = "; ".join(f"{question} ({question.expression!r:.60})" for question in left[:_SHOWN])
  more = "; ..." if len(left) > _SHOWN else ""
  return (
    f"{len(left):,} of {counted(len(questions), 'expression')} have no prediction: {shown}{more}"
  )


class _Unknown(InputError):
  """A prediction for something else than the questions."""


class _Index:
  """Finds questions by refs and by images."""

  def __init__(self, questions: Sequence[Question], predictions: Iterable[Prediction]):
    self._questions = questions
    self._by_ref: dict[int, list[int]] = collections.defaultdict(list)
    self._by_image: dict[int | str, list[int]] = collections.defaultdict(list)
    for number, question in enumerate(questions):
      self._by_ref[question.ref_id].append(number)
      self._by_image[question.image_id].append(number)
      self._by_image[question.file_name].append(number)
    self._names = ImageNames((question.file_name for question in questions), "the data")
    self._texts = [_normalise(question.expression) for question in questions]
    self._sent_ids: dict[int, set[int]] = collections.defaultdict(set)
    for prediction in predictions:
      ref_id, sent_id = prediction.integer("ref_id"), prediction.integer("sent_id")
      if ref_id is not None and sent_id is not None:
        self._sent_ids[ref_id].add(sent_id)

  def find(self, prediction: Prediction) -> list[int]:
    """Returns the numbers of the questions that a prediction is for, at least one."""
    ref_id, text = prediction.integer("ref_id"), prediction.text(_TEXTS)
    if ref_id is None:
      if text is None:
        raise InputError(
          f"{prediction.where}: names no expression; write ref_id and expression_index, or image "
          "and expression"
        )
      of_image = self._of_image(prediction)
      if of_image is None:
        raise InputError(f"{prediction.where}: has neither ref_id nor one of {', '.join(_IMAGES)}")
      return self._with_text(prediction, of_image, text)
    asked = self._of_ref(prediction, ref_id)
    which = prediction.integer("expression_index")
    if which is not None:
      chosen = [n for n in asked if self._questions[n].expression_index == which]
      if not chosen:
        raise InputError(
          f"{prediction.where}: expression_index is {which}, but ref {ref_id} has "
          f"{counted(len(asked), 'expression')}, counted from 0"
        )
      return chosen if text is None else self._with_text(prediction, chosen, text)
    if text is not None:
      return self._with_text(prediction, asked, text)
    return self._by_sent_id(prediction, ref_id, asked)

  def _of_ref(self, prediction: Prediction, ref_id: int) -> list[int]:
    asked = self._by_ref.get(ref_id)
    if not asked:
      raise _Unknown(f"{prediction.where}: ref {ref_id}; evaluate the split that it is for")
    of_image = self._of_image(prediction)
    if of_image is not None:
      both = sorted(set(asked) & set(of_image))
      if not both:
        raise InputError(
          f"{prediction.where}: ref {ref_id} is of image {self._questions[asked[0]].file_name}, "
          f"but the prediction is for {self._questions[of_image[0]].file_name}"
        )
      asked = both
    places = dict.fromkeys((self._questions[n].data, self._questions[n].image_id) for n in asked)
    if len(places) > 1:
      (data, image), (other, another), *_ = places
      raise InputError(
        f"{prediction.where}: ref {ref_id} is in {data}, image {image}, and in {other}, image "
        f"{another}; evaluate one --data at a time, or add image_id"
      )
    return asked

  def _of_image(self, prediction: Prediction) -> list[int] | None:
    """Returns the questions about the image that a prediction names, None if it names none."""
    key = next((key for key in _IMAGES if prediction.fields.get(key) is not None), None)
    if key is None:
      return None
    value = prediction.fields[key]
    if not isinstance(value, str) or value.lstrip("-").isdecimal():
      number = prediction.integer(key)
      found = self._by_image.get(-1 if number is None else number)
      if not found:
        raise _Unknown(f"{prediction.where}: image {value}; evaluate the split that it is for")
      return found
    try:
      return self._by_image[self._names.find(value)]
    except ImageNotFound as error:
      raise _Unknown(f"{prediction.where}: {error}") from error
    except InputError as error:
      raise InputError(f"{prediction.where}: {error}") from error

  def _with_text(self, prediction: Prediction, asked: Sequence[int], text: str) -> list[int]:
    normal = _normalise(text)
    found = [n for n in asked if self._texts[n] == normal]
    if not found:
      there = list(dict.fromkeys(repr(self._questions[n].expression)[:60] for n in asked))
      more = ", ..." if len(there) > _SHOWN else ""
      raise _Unknown(
        f"{prediction.where}: expression {text!r:.60}; there it is "
        f"{', '.join(there[:_SHOWN])}{more}"
      )
    return found

  def _by_sent_id(self, prediction: Prediction, ref_id: int, asked: Sequence[int]) -> list[int]:
    sent_id, known = prediction.integer("sent_id"), sorted(self._sent_ids.get(ref_id, ()))
    if len(asked) == 1 and len(known) <= 1:
      return list(asked)
    has = f"{prediction.where}: ref {ref_id} has {counted(len(asked), 'expression')}"
    if sent_id is None:
      raise InputError(f"{has}; add expression_index, from 0, or the text as `sentence`")
    # Records do not keep sent_ids, but the sentences of a ref are stored in their order.
    if len(known) != len(asked):
      raise InputError(
        f"{has}, but the file {counted(len(known), 'sent_id')}; which is which shows only if all "
        "are there: add expression_index, from 0, or the text as `sentence`"
      )
    return [asked[known.index(sent_id)]]


def _normalise(text: str) -> str:
  try:
    return preprocess.normalise_text(text)
  except InputError:
    return ""


def _agree(a: Prediction, b: Prediction) -> bool:
  """Tells whether two answers to the same image and text are the same mask."""
  if "ref_id" in a.fields or "ref_id" in b.fields:
    return False
  return a.answer() == b.answer()
