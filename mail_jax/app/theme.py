"""The theme of the app: colors, system fonts, light and dark."""

import gradio as gr  # pyright: ignore[reportMissingImports]

_SANS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "sans-serif")
_MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")


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
