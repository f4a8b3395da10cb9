"""What HTTP itself needs: request headers, errors, middleware, Server-Sent Events. Nothing here depends on jobs."""
