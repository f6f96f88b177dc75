"""VTCBench over many checkpoints in parallel: idempotent units of work, each committed in one act."""
