"""Runs stages: keys, shards, workers, recovery."""
