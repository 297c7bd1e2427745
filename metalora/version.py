"""The version, also where the installed package's metadata is not at hand."""

__version__ = "0.1.0"
