"""What both clients assume unless they are told otherwise."""

import httpx

DEFAULT_URL = "http://127.0.0.1:8000"
#: How long `generate` waits for its text unless the caller says otherwise, in seconds; as long as the server would.
TIMEOUT_S = 120.0
#: How long an operation keeps trying while the server is away or too busy, in seconds.
RETRY_S = 30.0
#: Any number of threads or tasks may wait at once; this many connections are kept while they rest.
LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=20)
