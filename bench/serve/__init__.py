"""How a server does under load: latencies and throughput over HTTP."""
