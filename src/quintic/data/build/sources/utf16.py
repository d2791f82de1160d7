"""UTF-16 that begins with a byte order mark to UTF-8, as it is read."""

import codecs
from collections.abc import Iterator
from itertools import chain

MARK_BYTES = 4
"""So many first bytes tell UTF-16 from UTF-32, whose mark may begin in the same way."""


def is_utf16(head: bytes) -> bool:
    """Return whether text that begins so is UTF-16 by its mark."""
    marks = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    return head.startswith(marks) and not head.startswith(codecs.BOM_UTF32_LE)


def as_utf8(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """Yield blocks of UTF-16 with a mark as UTF-8, and all others as they are.

    What is no UTF-16, half of a surrogate pair or of a unit, becomes what is no UTF-8, which makes
    the document that it is in a bad one.
    """
    head = b""
    while len(head) < MARK_BYTES and (block := next(blocks, None)) is not None:
        head += block
    blocks = chain([head], blocks)
    if not is_utf16(head):
        yield from blocks
        return
    decoder = codecs.getincrementaldecoder("utf-16")("surrogatepass")
    for block in blocks:
        yield decoder.decode(block).encode("utf-8", "surrogatepass")
    if decoder.getstate()[0]:
        yield b"\xff"
