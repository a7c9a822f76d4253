"""`metaformer bench data`: pictures that loaders make in a second, beside those that a model trains on."""
