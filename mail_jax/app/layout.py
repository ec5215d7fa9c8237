"""The layout and the theme of the page, and what happens when its fields are used."""

import abc
import html
import os
import pathlib
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr  # pyright: ignore[reportMissingImports]
from gradio.data_classes import FileData, ImageData  # pyright: ignore[reportMissingImports]

from input_pipeline.common.errors import InputError
from mail_jax.app import examples as examples_of
from mail_jax.app import links, pictures
from mail_jax.app.limits import Limits, shorten
from mail_jax.app.service import KEPT_SECONDS, Answer, RequestHandler

_SANS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "sans-serif")
_MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")
_FETCHES = ("http:", "https:")
_HERE = pathlib.Path(__file__).parent
_WAITING = (
  '<div class="waiting" role="note">The result appears here:<br>'
  "your photo, with what you described marked.</div>"
)
_INSTANCES = (
  '<h2 class="over">Instances that the model selected from '
  "<small>most probable first; select one to enlarge it</small></h2>"
)
_MARKS = (_HERE / "marks.html").read_text(encoding="utf-8")
_LINK = (
  '<button type="button" class="copy">Copy a link to this</button>'
  '<p class="note"></p><p class="unseen" role="status"></p>'
)
_ADDRESS = "() => [window.location.search]"
# Adds a line, in which the visitor goes on writing.
_ANOTHER = """(text) => {
  const longer = text && text.trim() ? text.replace(/\\s+$/, "") + "\\n" : "";
  const area = document.querySelector("#text textarea");
  setTimeout(() => { area.focus(); area.setSelectionRange(longer.length, longer.length); }, 50);
  return longer;
}"""
# Asks what a link asks, once its fields are filled in.
_ASK = """() => {
  const asked = new URLSearchParams(window.location.search);
  if (!asked.has("photo") || !asked.has("text")) return;
  let waits = 50;
  const ask = () => {
    if (document.querySelector("#photo .image-frame img")) document.querySelector("#find").click();
    else if (waits--) setTimeout(ask, 100);
  };
  setTimeout(ask, 100);
}"""
_NOT_IN_LINK = "The link restores the expressions; a photo of your own is never in a link."
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
    heading: HTML that names the models.
    examples: to pick from; may be empty.
    allowed: the limits of the queue.
    masks_note: the source of instance masks if none are uploaded, in one sentence.

  Returns:
    `gradio.Blocks`, to be launched with `theme()` and `css()`.
  """
  with gr.Blocks(
    title="mail_jax", analytics_enabled=False, delete_cache=(600, KEPT_SECONDS), fill_width=True
  ) as page:
    gr.HTML(heading)
    kept = gr.State(None, time_to_live=KEPT_SECONDS)
    address = gr.Textbox(visible="hidden")
    with gr.Row(equal_height=False, elem_classes=["compare"] if len(handler.names) > 1 else None):
      with gr.Column(scale=5, min_width=300):
        photo, marks, text, masks, find = _inputs(handler, allowed, masks_note)
        if examples:
          _examples(examples, photo, text, marks)
      with gr.Column(scale=6 if len(handler.names) == 1 else 10, min_width=300):
        shown = _outputs(handler.names)
    which, *parts, _ = shown
    find.click(
      _friendly(lambda *values: _first(handler(*values))),
      inputs=[photo, text, masks, marks],
      outputs=[kept, *shown],
      api_name="segment",
      concurrency_limit=allowed.concurrency,
      show_progress_on=[parts[2]],
      scroll_to_output=True,
    )
    which.input(
      _friendly(_again), [kept, which], parts, api_visibility="private", show_progress="minimal"
    )
    page.load(
      _friendly(lambda query: _restore(query, examples, allowed)),
      address,
      [photo, text, marks],
      js=_ADDRESS,
      api_visibility="private",
      show_progress="hidden",
    ).success(None, js=_ASK, api_visibility="private")
  page.queue(max_size=allowed.queue, default_concurrency_limit=4)
  return page


def _inputs(handler: RequestHandler, allowed: Limits, masks_note: str):
  """Adds the fields that a visitor fills in."""
  photo = _PHOTO(
    label="Photo",
    sources=["upload", "clipboard"],
    height=340,
    placeholder="Drop a photo here\nor click to choose one",
    elem_id="photo",
  )
  marks = _marks(handler, allowed, photo)
  text = gr.Textbox(
    label="What to look for",
    info="Enter asks; Shift+Enter begins another expression, which gets its own colour",
    placeholder="the woman in the leather jacket",
    lines=2,
    max_lines=allowed.expressions,
    elem_id="text",
  )
  with gr.Row(elem_id="ask"):
    another = gr.Button("Another expression", size="lg", min_width=120, elem_id="another")
    find = gr.Button("Find", variant="primary", size="lg", min_width=120, elem_id="find")
  another.click(None, text, text, js=_ANOTHER, api_visibility="private")
  with gr.Accordion("Instance masks", open=False, elem_id="masks"):
    gr.HTML(f'<p class="note">{html.escape(masks_note)}</p>')
    masks = _MASKS_FILE(
      label="COCO JSON with the photo's instances",
      file_types=[".json"],
      height=120,
      elem_id="masks_file",
    )
  return photo, marks, text, masks, find


def _marks(handler: RequestHandler, allowed: Limits, photo):
  """Adds the tools that mark instances on the photo; their value is what `marks.read` takes."""
  # Shows what the server made of the marks, through the tools' script.
  areas = gr.HTML("", html_template="", js_on_load=_script("areas.js"), visible="hidden")
  marks = gr.HTML(
    "",
    label="Marks",
    html_template=_MARKS,
    js_on_load=_script("marks.js"),
    apply_default_css=False,
    elem_id="marks",
    most=allowed.marks,
    points=allowed.mark_points,
  )
  marks.drawn(  # pyright: ignore[reportAttributeAccessIssue]
    _friendly(handler.draw_marks),
    [photo, marks],
    areas,
    api_visibility="private",
    show_progress="hidden",
    trigger_mode="always_last",
  )
  photo.input(None, None, marks, js="() => ''", api_visibility="private")
  return marks


def _script(name: str) -> str:
  return (_HERE / name).read_text(encoding="utf-8")


def _examples(examples: Sequence[examples_of.Example], photo, text, marks) -> None:
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
    return example.path, "\n".join(example.expressions), ""

  gallery.select(pick, None, [photo, text, marks], api_visibility="private", show_progress="hidden")


def _outputs(names: Sequence[str]):
  """Adds the fields of a result: `which` first, the others in the order of `_show`, `link` last."""
  waiting = gr.HTML(_WAITING)
  with gr.Column(visible=False) as result:
    which = gr.Radio([], label="Show", visible=False, elem_id="which")
    with gr.Row(equal_height=False):
      panels = [_panel(name if len(names) > 1 else "", number) for number, name in enumerate(names)]
    link = gr.HTML(
      {"query": "", "note": "", "status": ""},
      html_template=_LINK,
      js_on_load=_script("link.js"),
      apply_default_css=False,
      elem_id="link",
    )
  return [which, waiting, result, *(part for panel in panels for part in panel), link]


def _panel(name: str, number: int):
  """Adds what one model found; the first model's fields have the plain names."""
  suffix = f"-{number + 1}" if number else ""
  with gr.Column(min_width=280):
    if name:
      gr.HTML(f'<h2 class="over">{html.escape(name)}</h2>')
    overlay = gr.Image(
      label=f"Result {name}".strip(),
      format="png",
      type="filepath",
      interactive=False,
      show_label=False,
      buttons=["fullscreen"],
      elem_id=f"overlay{suffix}",
      elem_classes=["overlay"],
      alt_text="The photo with what you described marked; the text below says what was found",
    )
    summary = gr.HTML(elem_id=f"summary{suffix}")
    mask = gr.DownloadButton("Download the mask", size="lg", elem_id=f"mask{suffix}")
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
        elem_id=f"instances{suffix}",
        elem_classes=["instances"],
      )
  return overlay, summary, mask, candidates, instances


def _first(answer: Answer):
  """Returns the values of the fields after a request: the first view of it, all together."""
  labels = [f"{n}. {shorten(text)}" for n, text in enumerate(answer.expressions, 1)]
  views = ["All together", *labels] if len(labels) > 1 else labels
  which = gr.Radio([(view, n) for n, view in enumerate(views)], value=0, visible=len(views) > 1)
  note = "The link restores photo, marks and expressions." if answer.has_photo else _NOT_IN_LINK
  link = {
    "query": answer.query,
    "note": note if answer.query else "This is too much for a link.",
    "status": f"Done: {len(labels)} of {len(labels)} expressions answered.",
  }
  return answer, which, *_show(answer, 0), link


def _again(answer: Answer | None, number: int):
  """Returns the values of the fields for another view of the same request."""
  if answer is None or not all(
    os.path.isfile(predictions[number].overlay) for predictions in answer.models.values()
  ):
    raise InputError("This result has expired: press Find again.")
  return _show(answer, number)


def _show(answer: Answer, number: int):
  values: list[Any] = [gr.HTML(visible=False), gr.Column(visible=True)]
  for predictions in answer.models.values():
    shown = predictions[number]
    several = shown.mask.endswith(".zip")
    values += [
      shown.overlay,
      shown.summary,
      gr.DownloadButton("Download the masks" if several else "Download the mask", value=shown.mask),
      gr.Column(visible=bool(shown.instances)),
      gr.Gallery(shown.instances, selected_index=None),
    ]
  return values


def _restore(query: str, examples: Sequence[examples_of.Example], allowed: Limits):
  """Returns photo, expressions and marks of a link; of the page's own address, no change."""
  shared = links.read(query or "", allowed)
  if shared is None:
    return gr.skip(), gr.skip(), gr.skip()
  text = "\n".join(shared.expressions)
  path = examples_of.find(examples, shared.photo)
  if path is None:
    gr.Warning("The photo of this link is not here: choose it yourself.", title="Choose the photo")
    return gr.skip(), text, ""
  return path, text, "\n".join(map(str, shared.marks))


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


def css() -> str:
  """Returns the styles of the page, with the colours of expressions."""
  dots = [
    f"#which label:nth-child({n})::before {{ background: {pictures.css(colour)}; }}"
    for n, colour in enumerate(pictures.COLOURS, 2)
  ]
  return "\n".join([(_HERE / "page.css").read_text(encoding="utf-8"), *dots])
