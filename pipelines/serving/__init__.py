"""An OpenAI-compatible chat service over a QMoP checkpoint, hosted by Ray Serve."""
