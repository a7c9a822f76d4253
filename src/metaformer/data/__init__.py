"""Images on disk, the order and augmentation in which a run sees them, and demo data."""
