"""Measures that are exact: counts over images, summed over ranks."""
