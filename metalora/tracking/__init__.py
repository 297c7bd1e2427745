"""Where a run's story is told: MLflow, or nowhere."""
