"""`celeriac chat`: talk to a chat model of a server."""

from __future__ import annotations

from typing import Any

import click

from celeriac.cli import options
from celeriac.cli.chat.options import MAX_TOKENS, system
from celeriac.cli.command import Command
from celeriac.cli.signals import exit_on_stop_signals


@click.command("chat", cls=Command, context_settings={"default_map": {"max_tokens": MAX_TOKENS}})
@system
@options.sampling_of_texts
@options.generating
def command(system: str | None, url: str, **request: Any) -> None:
    """Talk to a chat model of a server.

    Reads messages, one a line, and prints the answers. /help lists the commands of the conversation. Ctrl-C stops an
    answer; at the prompt it leaves, as Ctrl-D does.
    """
    from celeriac.cli.chat.conversation import Conversation
    from celeriac.cli.chat.history import History
    from celeriac.cli.chat.server import ServerBackend
    from celeriac.client import InferenceClient

    with InferenceClient(url) as client, exit_on_stop_signals():
        Conversation(ServerBackend(client, request), History(system)).run()
