"""The web app, `python -m mail_jax.app`; only `layout.py` needs Gradio."""
