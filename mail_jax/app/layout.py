"""The layout of the page: its fields, and what happens when they are used."""

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
from mail_jax.app.service import KEPT_SECONDS, Prediction, RequestHandler

_FETCHES = ("http:", "https:")
_WAITING = (
  '<div class="waiting" role="note">The result appears here:<br>'
  "your photo, with what you described marked.</div>"
)
_LEGEND = (
  '<p class="legend"><span><i class="blue"></i>what you described</span>'
  '<span><i class="yellow"></i>the selected instance</span></p>'
)
_INSTANCES = (
  '<h2 class="over">Instances that the model selected from '
  "<small>most probable first; click one to enlarge it</small></h2>"
)
_DEFECT = "Internal error; the details are in the server's log. Try again, or try another photo."


class _Unwritten(type(gr.Image)):
  """Gradio's metaclass, without its stub files, which it would write into this package."""

  def __new__(cls, name: str, bases: tuple, attrs: dict) -> Any:
    return abc.ABCMeta.__new__(cls, name, bases, attrs)


class _Uploaded:
  """Accepts files that were uploaded to this server, and fetches nothing from other addresses."""

  async def async_move_resource_to_block_cache(self, url_or_file_path: str | None) -> str | None:
    if str(url_or_file_path or "").lower().startswith(_FETCHES):
      raise gr.Error("Files are not fetched from other addresses: upload the file instead.")
    return await super().async_move_resource_to_block_cache(url_or_file_path)  # pyright: ignore


class Photo(_Uploaded, gr.Image, metaclass=_Unwritten):
  """An upload field for an image; the handler gets the path of the file, not decoded."""

  data_model = ImageData

  def get_block_name(self) -> str:
    """Returns the name of Gradio's component that shows it."""
    return "image"

  def preprocess(self, payload) -> str | None:
    """Returns the path at which Gradio stored the file."""
    return None if payload is None else payload.path


class MasksFile(_Uploaded, gr.File, metaclass=_Unwritten):
  """An upload field for a file; the handler gets its path."""

  data_model = FileData

  def get_block_name(self) -> str:
    """Returns the name of Gradio's component that shows it."""
    return "file"

  def preprocess(self, payload) -> str | None:
    """Returns the path at which Gradio stored the file."""
    return None if payload is None else payload.path


# Without Gradio, the type checker cannot see the arguments of its classes.
_PHOTO: Any = Photo
_MASKS_FILE: Any = MasksFile


def build(
  handler: RequestHandler,
  heading: str,
  examples: Sequence[examples_of.Example],
  allowed: Limits,
  masks_note: str,
):
  """Builds the page.

  Args:
    handler: of the requests.
    heading: HTML that names the model.
    examples: to pick from; may be empty.
    allowed: the limits of the queue.
    masks_note: the source of instance masks if none are uploaded, in one sentence.

  Returns:
    `gradio.Blocks`, to be launched with `theme.theme()` and `theme.CSS`.
  """
  with gr.Blocks(
    title="mail_jax", analytics_enabled=False, delete_cache=(600, KEPT_SECONDS), fill_width=True
  ) as page:
    gr.HTML(heading)
    kept = gr.State([], time_to_live=KEPT_SECONDS)
    with gr.Row(equal_height=False):
      with gr.Column(scale=5, min_width=300):
        photo, text, masks, find = _inputs(masks_note)
        if examples:
          _examples(examples, photo, text)
      with gr.Column(scale=6, min_width=300):
        shown = _outputs()
    which, *parts = shown
    find.click(
      _friendly(lambda *values: _first(handler(*values))),
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


def _inputs(masks_note: str):
  """Adds the fields that a visitor fills in."""
  photo = _PHOTO(
    label="Photo",
    sources=["upload", "clipboard"],
    height=320,
    placeholder="Drop a photo here\nor click to choose one",
    elem_id="photo",
  )
  text = gr.Textbox(
    label="What to look for",
    info="One expression per line",
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


def _examples(examples: Sequence[examples_of.Example], photo, text) -> None:
  """Adds photos to pick; each fills in the photo and expressions."""
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


def _outputs():
  """Adds the fields of a result: `which` first, the others in the order of `_show`."""
  waiting = gr.HTML(_WAITING)
  with gr.Column(visible=False) as result:
    which = gr.Radio([], label="Expression", visible=False, elem_id="which")
    overlay = gr.Image(
      label="Result",
      format="png",
      type="filepath",
      interactive=False,
      show_label=False,
      buttons=["fullscreen"],
      elem_id="overlay",
      alt_text="The photo with the mask drawn in blue",
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
  return which, waiting, overlay, summary, mask, candidates, instances, result


def _first(predictions: list[Prediction]):
  """Returns the values of the fields after a request: all expressions, and the first result."""
  choices = [(f"{n}. {shorten(p.expression)}", n - 1) for n, p in enumerate(predictions, 1)]
  which = gr.Radio(choices, value=0, visible=len(predictions) > 1)
  return predictions, which, *_show(predictions[0])


def _again(predictions: list[Prediction], number: int):
  """Returns the values of the fields for another expression of the same request."""
  if not predictions or not os.path.isfile(predictions[number].overlay):
    raise InputError("This result has expired: press Find it again.")
  return _show(predictions[number])


def _show(prediction: Prediction):
  return (
    gr.HTML(visible=False),
    prediction.overlay,
    prediction.summary,
    prediction.mask,
    gr.Column(visible=bool(prediction.instances)),
    gr.Gallery(prediction.instances, selected_index=None),
    gr.Column(visible=True),
  )


def _friendly(function: Callable) -> Callable:
  """Returns a function that turns errors into one sentence for the visitor, and logs defects."""

  def friendly(*values):
    try:
      return function(*values)
    except InputError as error:
      # Gradio shows messages as HTML.
      message = html.escape(" ".join(str(error).split()), quote=False)
      raise gr.Error(message, title="Check your input", print_exception=False) from None
    except Exception:
      traceback.print_exc(file=sys.stderr)
      raise gr.Error(_DEFECT, print_exception=False) from None

  return friendly
