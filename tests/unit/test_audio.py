"""How long audio plays: what the bytes bear out, and nothing that a header only claims."""

from __future__ import annotations

import io
import random
import struct
import time
import wave
from base64 import b64encode

import pytest

from gateway.core.audio import seconds_of


def wav(seconds: float, *, rate_hz: int = 8_000, channels: int = 1, width: int = 2) -> bytes:
    """As Python's own library writes one."""
    out = io.BytesIO()
    with wave.open(out, "wb") as sound:
        sound.setnchannels(channels)
        sound.setsampwidth(width)
        sound.setframerate(rate_hz)
        sound.writeframes(bytes(round(seconds * rate_hz) * channels * width))
    return out.getvalue()


def mp3(frames: int, *, head: bytes = b"\xff\xfb\x90\x00", size: int = 417) -> bytes:
    """Frames of 128 kbit/s at 44,100 Hz, 26.1 ms each."""
    return (head + bytes(size - 4)) * frames


def measured(raw: bytes, audio_format: str = "wav") -> int | None:
    return seconds_of(b64encode(raw).decode(), audio_format)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("width", [1, 2, 3, 4])
@pytest.mark.parametrize("rate_hz", [8_000, 44_100])
def test_a_wav_is_as_long_as_its_samples(rate_hz: int, width: int, channels: int) -> None:
    """Whole seconds, a started one counts; whatever the rate, the width and the number of channels."""
    for seconds, counted in ((0.001, 1), (1, 1), (1.01, 2), (2.5, 3)):
        assert measured(wav(seconds, rate_hz=rate_hz, width=width, channels=channels)) == counted


def test_the_claim_of_a_wav_is_not_believed() -> None:
    """A byte rate that does not fit its samples, samples that reach beyond the chunk, no samples at all: no length."""
    raw = wav(3)
    assert measured(raw[:28] + struct.pack("<I", 1_000_000) + raw[32:]) is None  # bytes a second
    assert measured(raw[:24] + struct.pack("<I", 10_000_000) + raw[28:]) is None  # samples a second
    assert measured(raw[:40] + struct.pack("<I", 160) + raw[44:].replace(b"\0", b"\xff")) is None  # size of the data
    assert measured(raw[:36] + raw[12:]) is None  # two headers
    assert measured(wav(0)) is None
    assert measured(raw[:36]) is None
    assert measured(b"RIFFxxxxWAVE") is None
    assert measured(b"") is None


def test_a_wav_of_unknown_or_exaggerated_size_reaches_to_its_end() -> None:
    """What a recorder leaves that was cut off, or that streams: the bytes that are there count."""
    raw = wav(3)
    for claim in (0, 0xFFFFFFFF, 1_000_000):
        assert measured(raw[:40] + struct.pack("<I", claim) + raw[44:]) == 3


def test_other_chunks_of_a_wav_are_no_sound() -> None:
    """Titles and comments before and behind the samples change nothing, and odd ones are padded."""
    raw = wav(2)
    note = b"LIST" + struct.pack("<I", 5) + b"hello\0"
    assert measured(raw[:36] + note + raw[36:] + note) == 2


def test_an_mp3_is_as_long_as_its_frames() -> None:
    """1,152 samples a frame; 39 of them are a second and a bit. Version 2 has half as many."""
    assert measured(mp3(38), "mp3") == 1
    assert measured(mp3(39), "mp3") == 2
    assert measured(mp3(383), "mp3") == 11
    assert measured(mp3(10, head=b"\xff\xf3\x80\x00", size=208), "mp3") == 1  # 22,050 Hz, 64 kbit/s: 26.1 ms
    assert measured(mp3(39, head=b"\xff\xf3\x80\x00", size=208), "mp3") == 2


def test_tags_and_padding_of_an_mp3_are_no_sound() -> None:
    """ID3 before, ID3v1 and APE behind, zeros at the end, a last frame that is cut: the same length."""
    id3 = b"ID3\x04\x00\x00\x00\x00\x02\x01" + bytes(257)
    for raw in (
        id3 + mp3(39),
        mp3(39) + b"TAG" + bytes(125),
        mp3(39) + b"APETAGEX" + b"x" * 50,
        mp3(39) + bytes(1000),
        mp3(39)[:-100],
    ):
        assert measured(raw, "mp3") == 2


def test_an_mp3_that_hides_frames_has_no_length() -> None:
    """Frames behind something that is none, a bit rate that says nothing, another layer: a decoder may find more."""
    assert measured(mp3(3) + b"junk" + mp3(1000), "mp3") is None
    assert measured(b"junk" + mp3(39), "mp3") is None
    assert measured(bytes(5000), "mp3") is None
    assert measured(mp3(39, head=b"\xff\xfb\x00\x00"), "mp3") is None
    assert measured(mp3(39, head=b"\xff\xfd\x90\x00"), "mp3") is None
    assert measured(b"ID3\x04\x00\x00\x7f\x7f\x7f\x7f", "mp3") is None


def test_a_format_that_is_not_there_has_no_length() -> None:
    """An MP3 that is called a WAV, a WAV that is called an MP3, and letters that are no base64."""
    assert measured(mp3(39), "wav") is None
    assert measured(wav(1), "mp3") is None
    assert seconds_of("not base64!", "wav") is None
    assert seconds_of(b64encode(wav(1)).decode()[:-3] + "\n==", "wav") is None


def test_no_bytes_break_it() -> None:
    """Whatever is sent has a length above 0 or none; it never raises."""
    seed = time.time_ns() % 2**32
    print(f"seed {seed}")
    rng = random.Random(seed)
    for _ in range(3_000):
        raw = bytearray(rng.choice((wav(0.05), mp3(5), b"ID3\x04\x00\x10\x00\x00\x00\x01" + mp3(2))))
        for _ in range(rng.randint(1, 6)):
            raw[rng.randrange(len(raw))] = rng.randrange(256)
        cut = bytes(raw[: rng.randint(0, len(raw))])
        for audio_format in ("wav", "mp3"):
            length = measured(cut, audio_format)
            assert length is None or length > 0
