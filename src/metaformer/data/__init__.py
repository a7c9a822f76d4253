"""Data loading that all tasks share: images, splits, samplers, loader, scans, shards and demo scenes."""
