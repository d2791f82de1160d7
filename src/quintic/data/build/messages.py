"""Lists of chat messages, or of texts, to one text, by a template for each of them."""

import re

TEMPLATES = {"chatml": "<|im_start|>{role}\n{content}<|im_end|>\n"}
"""Templates that have a name."""

_PLACES = re.compile(r"\{(role|content)\}")

# The names in OpenAI's form and in ShareGPT's.
_KEYS = {"role": ("role", "from"), "content": ("content", "value")}


def unknown_places(template: str) -> str:
    """Return the words in braces of a template that stand for nothing, such as a misspelt one."""
    return ", ".join(sorted(set(re.findall(r"\{\w+\}", template)) - {"{role}", "{content}"}))


def text_of_messages(messages: object, template: str) -> str:
    """Return the messages one after another, each as the template has it.

    {role} and {content} stand for what the message has under `role` and `content`, or `from` and
    `value`; a message that is itself a text has only content. Raises ValueError where there is no
    list, or a message lacks what the template wants.
    """
    if not isinstance(messages, list):
        raise ValueError("is no list of messages")
    wanted = sorted(set(_PLACES.findall(template)))
    # Places and what stands between them, in turn: a text that has {role} keeps it.
    pieces = [(part, index % 2) for index, part in enumerate(_PLACES.split(template))]
    parts: list[str] = []
    for number, message in enumerate(messages, 1):
        if isinstance(message, str):
            message = {"content": message}
        if not isinstance(message, dict):
            raise ValueError(f"has no message as its element {number}")
        values: dict[str, str] = {}
        for place in wanted:
            value = next((message[key] for key in _KEYS[place] if key in message), None)
            if not isinstance(value, str):
                raise ValueError(f"has no text as {place} of its message {number}")
            values[place] = value
        parts += [values[part] if is_place else part for part, is_place in pieces]
    return "".join(parts)
