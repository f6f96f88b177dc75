"""One tracker per file: `PACKAGE` that it needs, `INSTALL` for pip, and `open_tracker(output, run_name, say)`."""
