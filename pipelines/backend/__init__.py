"""Where a training runs: in this process, or on Ray."""
