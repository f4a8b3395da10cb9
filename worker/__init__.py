"""The Celery worker: takes jobs from the queue of one checkpoint and decodes them. It never imports the API."""
