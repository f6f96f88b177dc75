"""The corpus: raw sources to validated shards with a manifest, and shards to the trainer in one exact order."""
