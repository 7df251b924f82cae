"""Runs in MLflow: written to a tracking store, and taken from its model registry."""

from embedstore.tracking.bring import bring
from embedstore.tracking.log import LogReport, log_run

__all__ = ["LogReport", "bring", "log_run"]
