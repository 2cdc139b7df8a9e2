"""Run stages: keys of shards, tasks, worker processes, recovery from their deaths."""
