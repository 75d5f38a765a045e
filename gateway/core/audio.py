"""How long a piece of audio plays: WAV and MP3, from their own bytes.

Floor: core (pure). A length decides a price before any work starts, so nothing is believed that the bytes do not bear
out: of a WAV the samples are measured and not the header's claim of a rate, of an MP3 every frame is counted and not
the tag that says how many there are. What can't be followed to its end has no known length.
Sources: Microsoft/IBM "Multimedia Programming Interface and Data Specifications 1.0" (RIFF WAVE); ISO/IEC 11172-3 and
13818-3 (MPEG audio frame header); ID3v2.4.0 section 3.1.
"""

from __future__ import annotations

import binascii
from collections.abc import Iterator
from fractions import Fraction
from functools import lru_cache

FORMATS = ("wav", "mp3")
LOWEST_RATE_HZ, HIGHEST_RATE_HZ = 1_000, 768_000
_SAMPLE_FORMATS = {1, 3, 6, 7, 0xFFFE}
"""PCM, float, A-law, mu-law, and "extensible", which is one of them with more words."""
_UNKNOWN_SIZES = {0, 0xFFFFFFFF}
"""What a program writes that does not know yet how much will follow."""


def seconds_of(data: str, audio_format: str) -> int | None:
    """Whole seconds, rounded up, of base64 audio; ``None`` if its length can't be told."""
    try:
        raw = binascii.a2b_base64(data, strict_mode=True)
    except (ValueError, binascii.Error):
        return None
    length = _wav(raw) if audio_format == "wav" else _mp3(raw)
    return None if length is None else -(-length.numerator // length.denominator)


def _wav(raw: bytes) -> Fraction | None:
    """The sum of all samples; each chunk must end where the next one begins."""
    if raw[:4] != b"RIFF" or raw[8:12] != b"WAVE":
        return None
    bytes_per_second = 0
    length = Fraction(0)
    for name, body_at, size in _chunks(raw):
        if name == b"fmt ":
            if bytes_per_second:
                return None  # of two headers a decoder may take the other one
            bytes_per_second = _byte_rate(raw[body_at : body_at + min(size, 40)])
        elif name == b"data":
            if not bytes_per_second:
                return None
            length += Fraction(size, bytes_per_second)
        elif not name.isascii() or not name.decode("ascii").isprintable():
            return None
    return length or None


def _chunks(raw: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Name, place and size of each chunk of a RIFF file; samples of an unknown size reach to the end."""
    at = 12
    while at + 8 <= len(raw):
        name, size, body_at = raw[at : at + 4], int.from_bytes(raw[at + 4 : at + 8], "little"), at + 8
        left = len(raw) - body_at
        if size > left or (name == b"data" and size in _UNKNOWN_SIZES):
            size = left
        yield name, body_at, size
        at = body_at + size + size % 2


def _byte_rate(fmt: bytes) -> int:
    """Bytes of a second of sound; 0 if the header contradicts itself."""
    if len(fmt) < 16:
        return 0
    kind, channels, rate_hz, claimed, block, bits = (
        int.from_bytes(fmt[start:end], "little") for start, end in ((0, 2), (2, 4), (4, 8), (8, 12), (12, 14), (14, 16))
    )
    is_sound = kind in _SAMPLE_FORMATS and channels and bits and LOWEST_RATE_HZ <= rate_hz <= HIGHEST_RATE_HZ
    if not is_sound or block != channels * -(-bits // 8) or claimed != rate_hz * block:
        return 0
    return rate_hz * block


# Kilobits a second by index 1 to 14, for layer III of version 1 and of versions 2 and 2.5.
_KBITS_1 = (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
_KBITS_2 = (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
_RATES_HZ = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}
_LAYER_3 = 1


def _mp3(raw: bytes) -> Fraction | None:
    """The sum of all frames; nothing but tags and zeros may stand around them."""
    at, end = _after_id3(raw), len(raw)
    if raw[-128:-125] == b"TAG":
        end -= 128
    length = Fraction(0)
    samples: dict[int, int] = {}
    while at < end:
        frame = _frame(raw[at : at + 3])
        if frame is None:
            if not samples or (raw[at : at + 8] != b"APETAGEX" and any(raw[at:end])):
                return None
            break
        size, count, rate_hz = frame
        samples[rate_hz] = samples.get(rate_hz, 0) + count
        at += size
    for rate_hz, count in samples.items():
        length += Fraction(count, rate_hz)
    return length or None


def _after_id3(raw: bytes) -> int:
    if raw[:3] != b"ID3" or len(raw) < 10:
        return 0
    size = 0
    for seven_bits in raw[6:10]:
        size = size << 7 | seven_bits & 0x7F
    return 10 + size + (10 if raw[5] & 0x10 else 0)


@lru_cache(maxsize=1024)
def _frame(head: bytes) -> tuple[int, int, int] | None:
    """Bytes, samples and sample rate of the frame that begins with these three; ``None`` if it is none of layer III.

    A file has many thousand frames and few kinds of them, so each kind is worked out once.
    """
    if len(head) < 3 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return None
    version, layer = head[1] >> 3 & 3, head[1] >> 1 & 3
    bitrate, rate, padding = head[2] >> 4, head[2] >> 2 & 3, head[2] >> 1 & 1
    if version not in _RATES_HZ or layer != _LAYER_3 or bitrate in (0, 15) or rate == 3:
        return None
    rate_hz = _RATES_HZ[version][rate]
    kbits = (_KBITS_1 if version == 3 else _KBITS_2)[bitrate - 1]
    samples = 1152 if version == 3 else 576
    return samples // 8 * kbits * 1000 // rate_hz + padding, samples, rate_hz
