"""`celeriac serve`: runs every role on one machine, as child processes."""
