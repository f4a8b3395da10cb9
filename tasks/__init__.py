"""What both sides agree on: the job record, the token log, settings, logs, errors and the Celery application."""
