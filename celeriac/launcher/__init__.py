"""`celeriac serve`: every role on one machine, as child processes of one terminal."""
