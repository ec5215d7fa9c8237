"""Where images and expressions come from."""
