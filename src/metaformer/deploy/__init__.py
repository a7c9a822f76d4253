"""Models as they are shipped: the exact form that is fastest where they run."""
