"""Annotated images, animations and videos, of any task."""
