"""The command line and everything that uses Ray."""
