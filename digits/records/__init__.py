"""What is remembered about a result: lineage, the MLflow runs and models, any result by any name."""
