"""Readers of annotation tools' exports, and `collect.py`, which turns their regions into lines."""
