"""The ground that the pipelines stand on: storage, Ray sessions, progress. Imports nothing of ours."""
