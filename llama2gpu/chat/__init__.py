"""Conversations as prompts: chat templates, a checkpoint's own and built-in ones."""

from llama2gpu.chat.builtin import FORMATS
from llama2gpu.chat.chat import Chat
from llama2gpu.chat.messages import Message, check_messages

__all__ = ["FORMATS", "Chat", "Message", "check_messages"]
