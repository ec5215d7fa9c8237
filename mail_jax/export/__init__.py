"""Trained models as folders of files that one can share, and that run elsewhere: docs/guides/export.md."""
