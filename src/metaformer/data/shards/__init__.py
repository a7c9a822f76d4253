"""Parquet and tar shards, local or remote."""
