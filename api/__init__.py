"""The front end: HTTP requests in, jobs out. It never imports torch or the worker."""
