"""The commands: one file each, called by its name."""
