"""Whether one ONNX model says all that another does, in whatever way it is written."""

from __future__ import annotations

from typing import Any

import onnx
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from edgekit.errors import InputError
from edgekit.models.onnx_file.messages import is_repeated, messages, replace


def refuse_loss(before: onnx.ModelProto, after: onnx.ModelProto, where: str) -> None:
    """Passes two models, both used up, of which the second says all that the first does.

    Types of values may be added. Raises InputError, which names the first field that differs.
    """
    _put_in_order(before)
    _put_in_order(after)
    lost = _declared_and_lost(before, after) or _difference(before, after, "model")
    if lost:
        raise InputError(
            "a part of this file would be lost on the way", where=where, got=lost,
            hint="The file may repeat a name or hold what the ONNX format does not know: "
            "export it again.",
        )  # fmt: skip


def _put_in_order(proto: onnx.ModelProto) -> None:
    """Writes what may be written in several ways in one: nothing that matters differs then."""
    for message in list(messages(proto)):
        for field, value in message.ListFields():
            if field.name == "metadata_props":
                _sort(value, "key")
            elif field.name == "quantization_annotation":
                for annotation in value:
                    _sort(annotation.quant_parameter_tensor_names, "key")
                _sort(value, "tensor_name")
            elif field.name == "external_data":
                kept = [e for e in value if e.key in ("location", "offset", "length")]
                replace(value, sorted(kept, key=lambda entry: str(entry.key)))
            elif field.name == "domain" and value == "ai.onnx":
                message.ClearField("domain")  # the default domain has two names
            elif _says_nothing(field.name, value):
                message.ClearField(field.name)
        if isinstance(message, onnx.NodeProto):
            while message.output and not message.output[-1]:
                del message.output[-1]


def _says_nothing(name: str, value: Any) -> bool:
    """Whether a field could as well not be there."""
    if isinstance(value, Message):
        return name == "type" and not value.ByteSize()
    return bool(value == "" or (name == "model_version" and value == 0))


def _sort(container: Any, key: str) -> None:
    replace(container, sorted(container, key=lambda entry: str(getattr(entry, key))))


def _declared_and_lost(before: onnx.ModelProto, after: onnx.ModelProto) -> str:
    """The first value whose declared type or notes are gone. The others are taken out of both.

    A declaration may be added; one of a value that does not exist, or of an input or output, which
    says it all again, may go.
    """
    lost = ""
    for old, new in zip(_owners(before), _owners(after), strict=False):
        made = {name for node in old.node for name in node.output}
        if isinstance(old, onnx.GraphProto):
            made |= {tensor.name for tensor in old.initializer}
            made -= {info.name for info in (*old.input, *old.output)}
        found = {info.name: info for info in new.value_info}
        for info in old.value_info:
            if info.name in made and _says_anything(info) and found.get(info.name) != info:
                lost = lost or f'what it declares of the value "{info.name}"'
        del old.value_info[:], new.value_info[:]
    return lost


def _owners(proto: onnx.ModelProto) -> list[Any]:
    kinds = (onnx.GraphProto, onnx.FunctionProto)
    return [message for message in messages(proto) if isinstance(message, kinds)]


def _says_anything(info: onnx.ValueInfoProto) -> bool:
    return any(field.name != "name" for field, _ in info.ListFields())


def _difference(before: Any, after: Any, path: str) -> str:
    """The path of the first field in which two messages differ; empty where none does."""
    if before.SerializeToString(deterministic=True) == after.SerializeToString(deterministic=True):
        return ""
    fields = {field.name: field for m in (before, after) for field, _ in m.ListFields()}
    for name, field in fields.items():
        one, other = getattr(before, name), getattr(after, name)
        place = f"{path}.{name}"
        if field.type != FieldDescriptor.TYPE_MESSAGE:
            if one != other:
                return place
        elif not is_repeated(one):
            found = _difference(one, other, place)
            if found:
                return found
        elif len(one) != len(other):
            return f"{place}: {len(one)} of them, {len(other)} kept"
        else:
            for index, (a, b) in enumerate(zip(one, other, strict=True)):
                found = _difference(a, b, f"{place}[{index}]")
                if found:
                    return found
    return f"{path}: fields that this version of ONNX does not know"
