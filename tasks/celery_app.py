"""The Celery application of both sides: the API renders its messages, and the workers run them."""

from __future__ import annotations

from celery import Celery

from tasks.environment.foreign_variables import remove_celery_variables
from tasks.redis_client.connections import broker_url
from tasks.settings import Settings

#: Name of the only task. Its only argument is a job id.
TASK_NAME = "generate"

#: How often kombu checks for messages past the visibility timeout, in seconds.
RESTORE_INTERVAL_S = 10


def make_app(settings: Settings) -> Celery:
    """A configured application without tasks. Opens no connection. Raises ConfigurationError.

    Only `settings` decide its configuration. Variables that would change it are removed from the environment.
    """
    remove_celery_variables()
    # Without fixups, Celery imports no Django project. This loader reads no configuration file.
    app = Celery("celeriac", set_as_current=False, fixups=[], loader="celery.loaders.app:AppLoader")
    app.conf.update(
        broker_url=broker_url(settings.redis_url),
        # A message is JSON with a job id. Other content types are refused without decoding.
        task_serializer="json",
        accept_content=["json"],
        # Results are in the job record.
        task_ignore_result=True,
        task_store_errors_even_if_ignored=False,
        result_backend=None,
        # A message is acknowledged when its job has ended or was released.
        task_acks_late=True,
        task_acks_on_failure=True,
        task_acks_on_timeout=True,
        worker_prefetch_multiplier=1,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        broker_transport_options={
            "visibility_timeout": settings.visibility_timeout_s,
            "unacked_restore_interval": RESTORE_INTERVAL_S,
            "unacked_restore_throttle": 1,
            # One list for each queue, without priorities: the backlog determines the order.
            "priority_steps": [0],
            # Longer than kombu's BRPOP, which blocks for 1 s.
            "socket_timeout": 30,
            "socket_connect_timeout": settings.redis_timeout_s,
            "socket_keepalive": True,
            "health_check_interval": 25,
        },
        # A Redis that refuses to write (its disk fails, or it became a replica) also refuses kombu's BRPOP. The worker
        # must treat this like any other outage, not stop.
        broker_channel_error_retry=True,
        broker_connection_retry=True,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        worker_send_task_events=True,
        task_send_sent_event=False,
        task_track_started=False,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
    )
    return app
