"""From a request to a job, and from a job to an answer: submit, wait, stream, describe."""
