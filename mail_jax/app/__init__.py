"""The web app, `python -m mail_jax.app`; only `layout.py` and `theme.py` need Gradio."""
