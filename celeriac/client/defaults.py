"""Defaults of both clients."""

import httpx

DEFAULT_URL = "http://127.0.0.1:8000"
#: How long `generate` waits for its text, in seconds. The server's own default is the same.
TIMEOUT_S = 120.0
#: How long an operation is retried while the server is away or too busy, in seconds.
RETRY_S = 30.0
#: Any number of threads or tasks may wait at the same time; up to 20 idle connections are kept.
LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=20)
