"""From photos, expressions and instance masks to batches."""
