"""Values of a JSON array, or one after another, that do not keep to lines.

They are cut from the stream by their brackets alone and parsed by whoever gets them: a value that
is broken within is one bad document, and nothing is held but the value that is being read. Where
objects lie one after another, one that lacks a bracket ends before the next line that begins so.
"""

import codecs
import json
import re
from collections.abc import Iterator
from itertools import chain
from typing import Literal

from quintic.errors import QuinticError, counted

Layout = Literal["lines", "array", "objects"]

# A string, whose second quote may be still to come; or what nests and separates values.
_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+(")?|[\[\]{},]', re.DOTALL)
# No string goes on in another line: where a quote is missing, the harm ends there.
_TOKEN_OF_OBJECTS = re.compile(rb'"(?:[^"\\\n]++|\\.)*+("|\n)?|[\[\]{},]', re.DOTALL)
_BEGIN_OF_OBJECT = re.compile(rb"\n(?=\{)")
_OPEN_ENDS = (b"{", b"[", b",", b":")
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"')


def json_layout(head: bytes) -> Layout:
    """Return how JSON lies in a file that begins so: an object per line, one array, or objects
    that go over many lines."""
    first, line_end, rest = head.strip().partition(b"\n")
    first = first.rstrip()
    # An array that ends before others follow is a line like them.
    if first.startswith(b"[") and not (line_end and first.endswith(b"]") and rest):
        return "array"
    # A line that was cut within a string has a quote left.
    outside = _STRING.sub(b"s", first)
    if first.startswith(b"{") and b'"' not in outside and outside.endswith(_OPEN_ENDS):
        return "objects"
    return "lines"


def json_values(
    is_array: bool,
    blocks: Iterator[bytes],
    begun: bool,
    part_bytes: int,
    max_bytes: int,
    name: str,
) -> Iterator[tuple[list[bytes], int]]:
    """Yield the values in blocks of bytes, some at a time, and how many bytes lie before the next.

    Reading can go on there, with `begun`. Parts have about `part_bytes`. Raises `QuinticError` for
    a value of more than `max_bytes`, an array that does not end, and for what follows its end.
    """
    held: list[bytes] = []
    size, wanted, scanned, passed, found = 0, part_bytes, 0, 0, 0
    depth, closed = int(is_array and begun), False
    tokens = _TOKEN if is_array else _TOKEN_OF_OBJECTS
    for block in chain(blocks, (b"",)):
        held.append(block)
        size += len(block)
        if block and size < wanted:
            continue
        content, start, values = b"".join(held), 0, []
        for token in () if closed else tokens.finditer(content, scanned):
            scanned, kind = token.end(), content[token.start()]
            if kind == ord('"'):
                if token[1] is None:
                    scanned = token.start()
                    break
            elif kind in b"{[":
                depth += is_array or depth > 0 or kind == ord("{")
                if is_array and depth == 1:
                    start = token.end()
            elif is_array and depth == 1:
                # A comma or the bracket behind the last value; which is left for a reader that goes
                # on behind this value.
                values.append(content[start : token.start()])
                closed = kind != ord(",")
                start = token.start() if closed else token.end()
                if closed:
                    break
            elif kind != ord(",") and depth:
                depth -= 1
                if not is_array and depth == 0:
                    values += _apart(content[start : token.end()])
                    start = token.end()
        else:
            scanned = len(content)
        if not found:
            values[:1] = (value.removeprefix(codecs.BOM_UTF8) for value in values[:1])
        values = [value for value in values if not value.isspace() and value]
        found += len(values)
        passed += start
        held, size, scanned = [content[start:]], len(content) - start, max(0, scanned - start)
        wanted = part_bytes + min(2 * size, max_bytes)
        if values:
            yield values, passed
        if closed and held[0][1:].strip():
            raise QuinticError(
                f"input {name} has more behind the end of its JSON array: make it one array, or "
                f"one object per line"
            )
        if size > max_bytes and not closed:
            raise QuinticError(
                f"input {name} holds a JSON value of more than {max_bytes >> 20} MiB, which cannot "
                f"be kept in memory: cut it into documents; an array within it is read if it lies "
                f"in a file by itself"
            )
    rest = b"".join(held)
    if is_array and not closed:
        raise QuinticError(
            f"input {name} is truncated: its JSON array does not end behind its last of "
            f"{counted(found, 'value')}; copy or download it again"
        )
    if not is_array and rest.strip():
        yield _apart(rest), passed + len(rest)


def _apart(value: bytes) -> list[bytes]:
    """Return an object, or where it is broken those that lines begin within it."""
    parts = _BEGIN_OF_OBJECT.split(value)
    first = not parts[0].strip()  # what is before the object itself
    if len(parts) == 1 + first:
        return [value]
    try:
        json.loads(value, parse_int=float)  # which has no limit to the digits
    except (ValueError, RecursionError):
        return parts[first:]
    return [value]
