"""The page itself: its fields, and what happens when they are used."""

import abc
import html
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr  # pyright: ignore[reportMissingImports]
from gradio.data_classes import FileData, ImageData  # pyright: ignore[reportMissingImports]

from input_pipeline.common.errors import InputError
from mail_jax.app import examples as examples_of
from mail_jax.app.limits import Limits, shorten
from mail_jax.app.service import KEPT_SECONDS, Answer, Answerer

_FETCHES = ("http:", "https:")
_WAITING = (
  '<div class="waiting" role="note">The answer appears here:<br>'
  "the photo with what you described marked in it.</div>"
)
_LEGEND = (
  '<p class="legend"><span><i class="blue"></i>what you described</span>'
  '<span><i class="yellow"></i>the instance that was chosen</span></p>'
)
_INSTANCES = (
  '<h2 class="over">Instances that the model chose from '
  "<small>likeliest first; click one to see it alone</small></h2>"
)
_DEFECT = (
  "Something went wrong on the server, and its log says what: try again, or try another photo."
)


class _Unwritten(type(gr.Image)):
  """Gradio's metaclass, but it writes no stub file into this package when a class is made."""

  def __new__(cls, name: str, bases: tuple, attrs: dict) -> Any:
    return abc.ABCMeta.__new__(cls, name, bases, attrs)


class _Uploaded:
  """Takes what was uploaded to this server; an address of somewhere else is not asked."""

  async def async_move_resource_to_block_cache(self, url_or_file_path: str | None) -> str | None:
    if str(url_or_file_path or "").lower().startswith(_FETCHES):
      raise gr.Error("Files are not fetched from other addresses: upload the file itself.")
    return await super().async_move_resource_to_block_cache(url_or_file_path)  # pyright: ignore


class Photo(_Uploaded, gr.Image, metaclass=_Unwritten):
  """A picture to upload; the function gets the path of the file, before anybody has decoded it."""

  data_model = ImageData

  def get_block_name(self) -> str:
    """The name of the part of Gradio's page that shows it."""
    return "image"

  def preprocess(self, payload) -> str | None:
    """Args: payload is where Gradio put the file. Returns its path."""
    return None if payload is None else payload.path


class MasksFile(_Uploaded, gr.File, metaclass=_Unwritten):
  """A file to upload; the function gets its path."""

  data_model = FileData

  def get_block_name(self) -> str:
    """The name of the part of Gradio's page that shows it."""
    return "file"

  def preprocess(self, payload) -> str | None:
    """Args: payload is where Gradio put the file. Returns its path."""
    return None if payload is None else payload.path


# Where Gradio is absent, the type checker sees no arguments of its classes.
_PHOTO: Any = Photo
_MASKS_FILE: Any = MasksFile


def build(
  answerer: Answerer,
  heading: str,
  examples: Sequence[examples_of.Example],
  allowed: Limits,
  masks_note: str,
):
  """Makes the page.

  Args:
    answerer: answers the requests.
    heading: HTML that says which model this is.
    examples: to pick from; may be none.
    allowed: how many may wait.
    masks_note: where instance masks come from when none are uploaded, in a sentence.

  Returns:
    `gradio.Blocks`, to be launched with `look.theme()` and `look.CSS`.
  """
  with gr.Blocks(
    title="mail_jax", analytics_enabled=False, delete_cache=(600, KEPT_SECONDS), fill_width=True
  ) as page:
    gr.HTML(heading)
    kept = gr.State([], time_to_live=KEPT_SECONDS)
    with gr.Row(equal_height=False):
      with gr.Column(scale=5, min_width=300):
        photo, text, masks, find = _questions(masks_note)
        if examples:
          _offer(examples, photo, text)
      with gr.Column(scale=6, min_width=300):
        shown = _answers()
    which, *parts = shown
    find.click(
      _friendly(lambda *given: _first(answerer(*given))),
      inputs=[photo, text, masks],
      outputs=[kept, *shown],
      api_name="segment",
      concurrency_limit=allowed.concurrency,
      show_progress_on=[parts[1]],
      scroll_to_output=True,
    )
    which.input(
      _friendly(_again), [kept, which], parts, api_visibility="private", show_progress="minimal"
    )
  page.queue(max_size=allowed.queue, default_concurrency_limit=4)
  return page


def _questions(masks_note: str):
  """The fields that a visitor fills in."""
  photo = _PHOTO(
    label="Photo",
    sources=["upload", "clipboard"],
    height=320,
    placeholder="Drop a photo here\nor click to choose one",
    elem_id="photo",
  )
  text = gr.Textbox(
    label="What to look for",
    info="One expression a line",
    placeholder="the woman in the leather jacket",
    lines=2,
    max_lines=8,
    elem_id="text",
  )
  find = gr.Button("Find it", variant="primary", size="lg", elem_id="find")
  with gr.Accordion("Instance masks", open=False, elem_id="masks"):
    gr.HTML(f'<p class="note">{html.escape(masks_note)}</p>')
    masks = _MASKS_FILE(
      label="COCO JSON with the photo's instances",
      file_types=[".json"],
      height=120,
      elem_id="masks_file",
    )
  return photo, text, masks, find


def _offer(examples: Sequence[examples_of.Example], photo, text) -> None:
  """Pictures to pick; each fills in the photo and an expression."""
  gr.HTML('<h2 class="over">Or pick an example</h2>')
  gallery = gr.Gallery(
    [examples_of.thumbnail(example.path) for example in examples],
    label="Examples",
    show_label=False,
    columns=4,
    height="auto",
    object_fit="cover",
    format="png",
    allow_preview=False,
    interactive=False,
    buttons=[],
    elem_id="examples",
  )

  def pick(event: gr.SelectData):
    example = examples[event.index]
    return example.path, "\n".join(example.expressions)

  gallery.select(pick, None, [photo, text], api_visibility="private", show_progress="hidden")


def _answers():
  """What is shown of an answer; `which` first, the rest in the order of `_show`."""
  waiting = gr.HTML(_WAITING)
  with gr.Column(visible=False) as answer:
    which = gr.Radio([], label="Expression", visible=False, elem_id="which")
    overlay = gr.Image(
      label="Answer",
      format="png",
      type="filepath",
      interactive=False,
      show_label=False,
      buttons=["fullscreen"],
      elem_id="overlay",
      alt_text="The photo with the mask in blue over it",
    )
    gr.HTML(_LEGEND)
    summary = gr.HTML(elem_id="summary")
    mask = gr.DownloadButton("Download the mask (PNG)", size="lg", elem_id="mask")
    with gr.Column(visible=False) as candidates:
      gr.HTML(_INSTANCES)
      instances = gr.Gallery(
        label="Instances",
        show_label=False,
        columns=4,
        height="auto",
        object_fit="contain",
        interactive=False,
        buttons=["fullscreen"],
        elem_id="instances",
      )
  return which, waiting, overlay, summary, mask, candidates, instances, answer


def _first(answers: list[Answer]):
  """What is shown when a request was answered: all expressions to choose from, and the first one."""
  choices = [(f"{n}. {shorten(answer.expression)}", n - 1) for n, answer in enumerate(answers, 1)]
  which = gr.Radio(choices, value=0, visible=len(answers) > 1)
  return answers, which, *_show(answers[0])


def _again(answers: list[Answer], number: int):
  """What is shown when another expression of the same request is chosen."""
  if not answers or not os.path.isfile(answers[number].overlay):
    raise InputError("This answer was cleaned away meanwhile: press Find it again.")
  return _show(answers[number])


def _show(answer: Answer):
  return (
    gr.HTML(visible=False),
    answer.overlay,
    answer.summary,
    answer.mask,
    gr.Column(visible=bool(answer.instances)),
    gr.Gallery(answer.instances, selected_index=None),
    gr.Column(visible=True),
  )


def _friendly(answer: Callable) -> Callable:
  """A function whose errors are one sentence for the visitor; what is a defect goes to the log."""

  def friendly(*given):
    try:
      return answer(*given)
    except InputError as error:
      # Gradio shows messages as HTML.
      message = html.escape(" ".join(str(error).split()), quote=False)
      raise gr.Error(message, title="Not yet", print_exception=False) from None
    except Exception:
      traceback.print_exc(file=sys.stderr)
      raise gr.Error(_DEFECT, print_exception=False) from None

  return friendly
