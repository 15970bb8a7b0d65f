"""Protobuf messages, walked and changed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message


def messages(message: Message) -> Iterator[Any]:
    """The message and every message in it, the outer ones first."""
    yield message
    for field, value in message.ListFields():
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            for inner in value if is_repeated(value) else (value,):
                yield from messages(inner)


def is_repeated(value: object) -> bool:
    """Whether a field's value is a row of them (a field says it only since protobuf 6.31)."""
    return not isinstance(value, (Message, str, bytes, int, float))


def replace(container: Any, entries: Iterable[Any]) -> None:
    """Makes these messages, which may be of the repeated field itself, all that it holds."""
    copies = [type(entry).FromString(entry.SerializeToString()) for entry in entries]
    del container[:]
    container.extend(copies)
