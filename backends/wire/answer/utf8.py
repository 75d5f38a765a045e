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

    __slots__ = ("_decoder", "_is_inside")

    def __init__(self) -> None:
        self._decoder = _DECODER("replace")
        self._is_inside = False  # a character, whose rest is to come

    def feed(self, data: bytes) -> str:
        """The characters that are complete now."""
        if not self._is_inside:
            try:
                return data.decode()  # nearly always whole; half the cost of a decoder with a memory
            except UnicodeDecodeError:
                pass
        text = self._decoder.decode(data)
        self._is_inside = bool(self._decoder.getstate()[0])
        return text

    def finish(self) -> str:
        """What half a character at the end becomes."""
        return self._decoder.decode(b"", True)
