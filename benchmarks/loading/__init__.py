"""`python -m benchmarks.loading`: images that loaders make in a second, and those that a model trains on."""
