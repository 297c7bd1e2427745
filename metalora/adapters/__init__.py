"""Low-rank updates of frozen layers."""
