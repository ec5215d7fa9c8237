"""A report on a run as one HTML page: metrics, charts and predictions."""
