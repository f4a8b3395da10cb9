"""Celery's side of the worker: its bootstep, consumer, connection and control commands, and the stop of the process."""
