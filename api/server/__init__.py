"""How the API's server treats connections: limits, slow clients, clients that half-close, and the accept loop."""
