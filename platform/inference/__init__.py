"""Video from a trained generator: one, many, held-out, on a page or from MLflow."""
