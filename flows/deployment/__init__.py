"""Prefect: server, deployments, tasks, artifacts."""
