"""Campaigns: many trials over a space of settings."""
