"""The layout and the theme of the page, and what happens when its fields are used."""

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

_SANS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "sans-serif")
_MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")
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
    `gradio.Blocks`, to be launched with `theme()` and `CSS`.
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


def theme():
  """Returns the theme: grays, and the blue that masks are drawn in."""
  return gr.themes.Base(
    primary_hue=gr.themes.colors.blue,
    neutral_hue=gr.themes.colors.slate,
    text_size=gr.themes.sizes.text_md,
    spacing_size=gr.themes.sizes.spacing_md,
    radius_size=gr.themes.sizes.radius_lg,
    font=_SANS,
    font_mono=_MONO,
  ).set(
    body_text_color="#172033",
    body_text_color_dark="#e6eaf1",
    body_text_color_subdued="#566275",
    body_text_color_subdued_dark="#9aa6b8",
    input_placeholder_color="#7b8798",
    input_placeholder_color_dark="#76839a",
    body_background_fill="#f6f7f9",
    body_background_fill_dark="#0f131a",
    block_background_fill="#ffffff",
    block_background_fill_dark="#171c25",
    block_border_color="#e3e7ee",
    block_border_color_dark="#272e3a",
    block_border_width="1px",
    block_shadow="0 1px 2px rgb(15 23 42 / 4%)",
    block_shadow_dark="none",
    block_label_background_fill="transparent",
    block_label_background_fill_dark="transparent",
    block_label_border_width="0px",
    block_label_text_color="#475569",
    block_label_text_color_dark="#a8b3c4",
    block_title_text_color="#334155",
    block_title_text_color_dark="#cbd5e1",
    block_title_text_weight="600",
    input_background_fill="#ffffff",
    input_background_fill_dark="#10151d",
    button_primary_background_fill="#1a5fe0",
    button_primary_background_fill_hover="#164fbd",
    button_primary_background_fill_dark="#2f6fed",
    button_primary_background_fill_hover_dark="#4a83f2",
    button_primary_text_color="#ffffff",
    button_large_text_weight="600",
  )


CSS = """
.gradio-container { width: 100% !important; min-width: 0 !important; max-width: 1160px !important;
  box-sizing: border-box;
  margin: 0 auto !important; padding: 32px 24px 48px !important; }
.gradio-container .main { padding: 0 !important; }
.gradio-container .html-container { padding: 0 !important; }
.gradio-container header h1 { font-size: 30px; line-height: 1.15; font-weight: 700;
  letter-spacing: -0.02em;
  margin: 0; }
.gradio-container header .lead { font-size: 17px; margin: 6px 0 10px;
  color: var(--body-text-color-subdued); }
.gradio-container header .model { font-size: 13px; margin: 0 0 10px;
  color: var(--body-text-color-subdued);
  font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
.gradio-container header .model span { font-weight: 600; color: var(--body-text-color);
  margin-right: 6px; }
.gradio-container h2.over { font-size: 14px; font-weight: 600; margin: 6px 2px 0;
  color: var(--block-title-text-color); }
.gradio-container h2.over small { font-weight: 400; font-size: 13px;
  color: var(--body-text-color-subdued); }
.answer { padding: 2px; }
.answer p { margin: 0 !important; }
.answer .asked { font-size: 15px; color: var(--body-text-color-subdued); overflow-wrap: anywhere; }
.answer .found { font-size: 22px; line-height: 1.3; font-weight: 650; letter-spacing: -0.01em;
  margin: 2px 0 8px !important; }
.answer ul { list-style: none; margin: 0; padding: 0; font-size: 14px; line-height: 1.5; }
.answer li { color: var(--body-text-color-subdued); padding-left: 16px; margin: 2px 0 !important;
  position: relative; }
.answer li::before { content: ""; position: absolute; left: 2px; top: 0.6em; width: 5px;
  height: 5px;
  border-radius: 50%;
  background: #1e6eff; }
.answer li::marker { content: ""; }
.waiting { border: 1.5px dashed var(--border-color-primary); border-radius: 12px;
  padding: 104px 24px;
  text-align: center;
  color: var(--body-text-color-subdued); font-size: 15px; line-height: 1.6; }
.note { font-size: 13px; color: var(--body-text-color-subdued); margin: 0 !important; }
.legend { font-size: 13px; color: var(--body-text-color-subdued); margin: 0 2px !important; }
.legend i { display: inline-block; width: 11px; height: 11px; border-radius: 3px;
  margin: 0 7px -1px 0; }
.legend span { display: inline-block; margin-right: 18px; }
.legend .blue { background: #1e6eff; } .legend .yellow { background: #ffc800; }
#photo .image-frame, #photo .image-frame img { width: 100%; height: 100%; object-fit: contain; }
#overlay .image-frame, #overlay img { width: 100% !important; max-height: 70vh;
  object-fit: contain; }
#examples, #instances { height: auto !important; }
#examples .grid-wrap, #instances .grid-wrap { min-height: 0 !important; max-height: none !important;
  height: auto !important; }
#examples .grid-container, #instances .grid-container { padding-bottom: 6px;
  grid-auto-rows: auto !important;
  grid-template-columns: repeat(4, minmax(0, 1fr)) !important; }
#examples .thumbnail-lg, #instances .thumbnail-lg { height: auto; aspect-ratio: 1; }
#instances .gallery-container:has(.preview) { min-height: 380px; }
#instances .caption-label { max-width: 100%; font-variant-numeric: tabular-nums; }
#text textarea { font-size: 16px; line-height: 1.5; }
@media (max-width: 640px) {
  .gradio-container { padding: 20px 14px 32px !important; }
  .gradio-container header h1 { font-size: 26px; }
  .gradio-container header .lead { font-size: 16px; }
  .waiting { padding: 40px 16px; }
  #instances .grid-container { grid-template-columns: repeat(3, minmax(0, 1fr)) !important; }
}
"""
