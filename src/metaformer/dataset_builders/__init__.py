"""Builders of published data sets, in the formats that the tasks read."""
