"""Represent files as assets, and return the files of events."""

from __future__ import annotations

from .events import new_files
from .uri import convert_asset_to_openlineage, create_asset, dataset, file_uri, sanitize_uri

__all__ = ["convert_asset_to_openlineage", "create_asset", "dataset", "file_uri", "new_files", "sanitize_uri"]
