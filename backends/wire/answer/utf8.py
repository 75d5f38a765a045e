"""Characters out of bytes that are cut anywhere.

Floor: wire (pure).
"""

from __future__ import annotations

import codecs

_DECODER = codecs.getincrementaldecoder("utf-8")


class Utf8Joiner:
    """Decode one text that comes in pieces; a character leaves when its last byte is there.

    Bytes that are no UTF-8, be they inside or at the end, become U+FFFD.
    """

    __slots__ = ("_decoder",)

    def __init__(self) -> None:
        self._decoder = _DECODER("replace")

    def feed(self, data: bytes) -> str:
        """The characters that are complete now."""
        return self._decoder.decode(data)

    def finish(self) -> str:
        """What half a character at the end becomes."""
        return self._decoder.decode(b"", True)
