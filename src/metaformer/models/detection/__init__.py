"""Object detection and instance segmentation networks."""
