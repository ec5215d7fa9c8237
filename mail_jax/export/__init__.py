"""Exporting and loading trained models: docs/guides/export.md."""
