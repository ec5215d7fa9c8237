"""Trained models as folders of files that one can share, and that run elsewhere: docs/export.md."""
