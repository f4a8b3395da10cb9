"""Real servers, and the environments of the clients that talk to them."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conformance.client_environment import ClientEnvironment
from tests.conftest import running_redis
from tests.helpers.chat_checkpoint import write_chat_checkpoint
from tests.integration.stack import CHECKPOINTS, SHIPPED, Stack

#: The name of the chat checkpoint: docs/clients.md uses it.
CHAT_NAME = "d20-sft"
#: Its context in tokens: clients that measure send long prompts.
CHAT_CONTEXT = 1024


@dataclass(frozen=True)
class Server:
    """An API process with a worker for each of two checkpoints."""

    url: str
    #: Folders of a checkpoint that continues sums, and of one that chats and has random weights.
    sums: Path
    chat: Path

    @property
    def openai_url(self) -> str:
        """The base URL for clients of OpenAI's API."""
        return f"{self.url}/v1"

    def clients(self, home: Path) -> ClientEnvironment:
        """The environment of most clients. Its variables lead to this server."""
        return ClientEnvironment("clients", home, OPENAI_BASE_URL=self.openai_url, OPENAI_API_KEY="none")


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """A server for all tests that kill none of its processes."""
    folder = Path(tempfile.mkdtemp(prefix="cel-"))
    with running_redis(folder) as redis_url:
        chat = write_chat_checkpoint(folder, CHAT_NAME, context=CHAT_CONTEXT)
        # lm-evaluation-harness names no checkpoint when it asks for token ids.
        stack = Stack(f"{redis_url}?db=0", folder, default_checkpoint=chat.name)
        try:
            workers = [stack.worker(wait=False), stack.worker(str(chat), wait=False)]
            _, url = stack.api()
            for worker in workers:
                worker.wait_for_line(" ready.")
            yield Server(url, CHECKPOINTS / SHIPPED, chat)
        finally:
            stack.close()
    shutil.rmtree(folder)


@pytest.fixture
def clients(server: Server, tmp_path: Path) -> ClientEnvironment:
    """The environment of most clients. Its variables lead to `server`."""
    return server.clients(tmp_path)


@pytest.fixture
def evalscope(tmp_path: Path) -> ClientEnvironment:
    """The environment of evalscope."""
    return ClientEnvironment("evalscope", tmp_path)
