"""The folder of a run, its log and its tracked run."""
