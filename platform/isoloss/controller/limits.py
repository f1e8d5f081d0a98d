"""How large anything in a request may be: one walk over the message, whatever the method.

Nobody can make another's memory, disk or latency grow by what they send; what is refused names the field.
"""

from __future__ import annotations

from typing import Any, Final

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from isoloss.errors import InvalidSpec

KIB: Final = 1 << 10
TEXT: Final = {  # bytes of a text, by field; of any other NAME
    "spec_json": 64 * KIB, "space_json": 64 * KIB, "desirability_json": 64 * KIB, "observations_json": 64 * KIB,
    "manifest_json": 1024 * KIB, "message": 1024 * KIB, "reason": 4 * KIB, "path": 4 * KIB, "lost": 4 * KIB, "checkpoint_root": 4 * KIB, "root": 4 * KIB,
    "command_prefixes": 4 * KIB, "text": 4 * KIB, "tail": 16 * KIB,
}  # fmt: skip
NAME: Final = 200
COUNT: Final = {  # entries of a list, by field; of any other FEW
    "observations_json": 100_000, "keys": 10_000, "holding": 10_000, "removed": 10_000, "trials": 10_000,
    "tails": 10_000, "endings": 1000, "batches": 1000, "samples": 1000, "steps": 1000, "checkpoints": 1000, "configurations": 1000, "functions": 1000,
    "command_prefixes": 1000, "values": 64,
}  # fmt: skip
FEW: Final = 256
REPLACED: Final = ("message", "tail")  # a trainer's own words: a NUL in them is replaced, not refused


def check_limits(message: Message, path: str = "") -> None:
    """Raise ``InvalidSpec`` naming the first field that is too long, too many, or holds a NUL."""
    for field, value in message.ListFields():
        name = path + field.name
        if not field.is_repeated:
            _check_value(field, value, name)
            continue
        if len(value) > (most := COUNT.get(field.name, FEW)):
            raise InvalidSpec(f"{name} has {len(value)} entries; accepted are at most {most}.")
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            held = field.message_type.fields_by_name["value"]
            for key in value:
                _check_text(str(key), name, NAME)
                if held.message_type is not None or held.type == FieldDescriptor.TYPE_STRING:
                    _check_value(held, value[key], f"{name}.{key}")
        elif field.message_type is not None or field.type == FieldDescriptor.TYPE_STRING:
            for place, one in enumerate(value):
                _check_value(field, one, f"{name}[{place}]")


def _check_value(field: Any, value: Any, name: str) -> None:
    if field.type == FieldDescriptor.TYPE_STRING:
        _check_text(value, name, TEXT.get(field.name, NAME), nul=field.name in REPLACED)
    elif field.message_type is not None:
        check_limits(value, f"{name}.")


def _check_text(value: str, name: str, most: int, *, nul: bool = False) -> None:
    if len(value) > most or len(value.encode(errors="surrogatepass")) > most:
        raise InvalidSpec(f"{name} has {len(value)} characters; accepted are at most {most} bytes.")
    if "\0" in value and not nul:
        raise InvalidSpec(f"{name} holds the character NUL; accepted is text without it.")
