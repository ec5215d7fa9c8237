"""The page behind `python -m mail_jax.app`; only `layout.py`, `look.py` and `fields.py` need Gradio."""
