"""The training engine: one configuration, one loop, any task."""
