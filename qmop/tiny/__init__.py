"""The embedded base: a tiny LLaVA that sees the rendered world, so that everything runs without a download."""
