"""Networks: the skeleton that all mixers share, and the published variants as data."""
