"""How far one Redis reaches: the cost of every script with many simulated workers and many waiting jobs."""
