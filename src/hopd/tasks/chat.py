"""Renders chat messages with the tokenizer's chat template."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from hopd.errors import TaskError
from hopd.tasks.problem import Message

ASKING = ("user", "system", "tool", "developer")  # roles that an assistant answers


class ChatTemplate:
    """Renders prompts: a text is the user's message, and an assistant's last turn is continued, not ended.

    `system` is the system message of prompts without one, `options` are variables of the template. Raises `TaskError`
    if the tokenizer has no template.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, system: str | None = None, options: Mapping[str, Any] | None = None
    ):
        if not tokenizer.chat_template:
            raise TaskError("the tokenizer has no chat template; write chat: false in the recipe's task")
        self.tokenizer, self.system, self.options = tokenizer, system, dict(options or {})

    def render(self, prompt: str | list[Message]) -> str:
        """Returns the text that the model reads. Raises `TaskError` if the template refuses the messages."""
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        try:
            if self.system is not None and not _has_system(messages):
                messages = [{"role": "system", "content": self.system}, *messages]
            continues = messages[-1]["role"] == "assistant"
            text = self.tokenizer.apply_chat_template(
                messages,
                tokenize=False,
                add_generation_prompt=not continues,
                continue_final_message=continues,
                **self.options,
            )
        except (TemplateError, AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            reason = f"no key {error}" if isinstance(error, KeyError) else str(error).partition("\n")[0][:200]
            raise TaskError(f"the chat template refuses its messages: {reason}") from error
        return str(text)

    def remarks(self, prompt: str | list[Message]) -> Iterator[str]:
        """Yields what a person may not expect of a prompt, as ends of a sentence that begins with `prompts`."""
        if isinstance(prompt, str):
            return
        role = prompt[-1]["role"]
        if role == "assistant":
            yield "end with a turn of the assistant, which the student continues"
        elif role not in ASKING:
            yield f"end with a turn of {role!r}, where one of user, system or tool is expected"
        if self.system is not None and _has_system(prompt):
            yield "have a system message of their own, which stays: the given one is for the others"

    def unread(self) -> list[str]:
        """Returns the options that the template never mentions."""
        text = self.tokenizer.get_chat_template(tools=self.options.get("tools"))
        return [name for name in self.options if not re.search(rf"\b{re.escape(name)}\b", text)]


def _has_system(messages: list[Message]) -> bool:
    return bool(messages) and messages[0]["role"] in ("system", "developer")
