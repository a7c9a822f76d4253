"""The skeleton that all mixers share, and the published networks as data."""
