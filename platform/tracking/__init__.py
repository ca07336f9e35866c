"""Runs in MLflow and metrics for Prometheus."""
