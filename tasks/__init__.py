"""Shared by both sides: the job record, the token log, settings, logs, errors and the Celery application."""
