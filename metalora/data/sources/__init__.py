"""Data sources: one file each, and its name in the first line here."""

from metalora.data.sources import embedded, folders, listing, parquet
from metalora.data.sources.base import SOURCES, DataSource

__all__ = ["SOURCES", "DataSource", "embedded", "folders", "listing", "parquet"]
