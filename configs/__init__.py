"""Recipes: one short file each."""
