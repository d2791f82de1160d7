"""Texts of a .warc or .wet file: its records of the type `conversion`, as Common Crawl writes them.

The format is ISO 28500: a line with the version, headers and a blank line, the content, two line
ends. Records of other types, such as the pages themselves, hold no text as it is wanted here.
"""

from collections import Counter
from collections.abc import Iterator
from io import BufferedReader

from quintic.data.build.sources.byte_stream import byte_stream
from quintic.data.build.sources.rows import BadRow
from quintic.errors import QuinticError

_HEADER_BYTES = 1 << 16  # of a line


def warc_texts(
    blocks: Iterator[bytes], begun: bool, part_bytes: int, max_bytes: int, name: str
) -> Iterator[tuple[list[bytes | BadRow], int]]:
    """Yield texts, some at a time, about `part_bytes`, and how many bytes lie before the next.

    Reading can go on there, with `begun`. A text of more than `max_bytes` is a `BadRow`, and so is
    what a file has that has no texts. Raises `QuinticError` for a file that is damaged or
    truncated.
    """
    stream = byte_stream(blocks)
    values: list[bytes | BadRow] = []
    passed, size, any_text = 0, 0, begun
    others: Counter[str] = Counter()
    while (headers := _headers(stream, name, passed)) is not None:
        lines_bytes, kind, length = headers
        passed += lines_bytes + length
        is_text, fits = kind == "conversion", length <= max_bytes
        content = stream.read(length) if is_text and fits else b""
        left = length - len(content)
        while not content and left and (skipped := len(stream.read(min(left, 1 << 20)))):
            left -= skipped
        if left:
            raise QuinticError(
                f"input {name} is truncated: it ends {left} bytes before its record that begins at "
                f"byte {passed - length - lines_bytes} does; copy or download it again"
            )
        if not is_text:
            others[kind] += 1
            continue
        any_text = True
        too_long = BadRow(f"a text of more than {max_bytes >> 20} MiB")
        values.append(content if fits else too_long)
        size += len(content)
        if size >= part_bytes or len(values) >= 10_000:
            yield values, passed
            values, size = [], 0
    if not any_text:
        kinds = ", ".join(f"{count} {kind}" for kind, count in others.items()) or "none"
        values.append(BadRow(f"no text, which is of the type conversion (.wet), but {kinds}"))
    if values:
        yield values, passed


def _headers(stream: BufferedReader, name: str, position: int) -> tuple[int, str, int] | None:
    """Return the bytes up to a record's content, its type and its length; None at the end."""
    count, headers = 0, {}
    while (line := stream.readline(_HEADER_BYTES)) and not line.strip():
        count += len(line)
    if not line:
        return None
    version = line
    while line.strip():
        count += len(line)
        line = stream.readline(_HEADER_BYTES)
        key, _, value = line.partition(b":")
        headers[key.strip().lower()] = value.strip()
    length = headers.get(b"content-length", b"")
    if not version.startswith(b"WARC/") or not line or not length.isdigit():
        raise QuinticError(
            f"input {name} is damaged: no record of a WARC file begins at its byte {position}; "
            f"copy or download it again"
        )
    kind = headers.get(b"warc-type", b"unknown").decode(errors="replace")
    return count + len(line), kind, int(length)
