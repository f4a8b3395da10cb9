"""Chat templates: how the messages of a conversation become a prompt. They do not import torch."""

from worker.checkpoints.chat.base import ChatError, ChatTemplate

__all__ = ["ChatError", "ChatTemplate"]
