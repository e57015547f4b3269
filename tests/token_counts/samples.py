"""Texts of many kinds, as agents read and write them: the same on every machine.

The counts of real tokenizers for them stand in `counts.json`; `record.py` writes it.
"""

import base64
import json
import random
import uuid
from pathlib import Path
from typing import Final

LENGTH: Final = 1500
"""Characters of a text, about."""

_ENGLISH = (
    "The order was placed on Monday and left our warehouse in the evening of the same day. We are sorry that it "
    "has not reached you yet; the carrier reports a delay at the border, which should be resolved by tomorrow. "
    "If you would rather have your money back, please answer this message and we will refund the whole amount. "
    "Nevertheless, the internationalization of our distribution infrastructure remains incomprehensible to some. "
)
_GERMAN = (
    "Die Lieferverzögerung beruht auf der Überprüfung der Zollunterlagen durch das Hauptzollamt. "
    "Gemäß den Allgemeinen Geschäftsbedingungen besteht ein Rückerstattungsanspruch innerhalb von vierzehn "
    "Tagen nach Zugang der Widerrufserklärung; die Rechtsschutzversicherungsgesellschaft übernimmt die Kosten. "
)
_CODE = '''
class RateLimiter:
    """Token bucket."""

    def __init__(self, rate_per_second: float, burst_size: int = 10) -> None:
        self._tokens = float(burst_size)
        self._updated_at = time.monotonic()

    async def acquire(self, n: int = 1) -> bool:
        now = time.monotonic()
        self._tokens = min(self.burst, self._tokens + (now - self._updated_at) * self.rate)
        if not (self._tokens >= n and self.is_open):
            raise RateLimitExceeded(f"{n!r} > {self._tokens:.2f}")
        return True
'''
_SHELL = """drwxr-xr-x  2 root root   4096 Nov 30 19:27 .cache
-rw-r--r--  1 root root 951543 Nov 30 19:27 anthropic-0.38.0-py3-none-any.whl
ERROR 2026-11-30T19:27:11.482Z worker-7f9c pid=3312 /srv/app/lib/queue.py:214 QueueFull(limit=512)
"""
_MINIFIED = '!function(e,t){"use strict";var n=e[0]||{};for(var r=1;r<t.length;r++)n[r]=t[r]&&!n.q}(a,b);'
_HTML = '<div class="row"><a href="/orders?id=17&amp;x=2">Order&nbsp;17</a><td>&euro;12.50</td></div>\n'
_TABLE = "| order | state | amount |\n|---|:-:|---:|\n| W1 | sent | 12.50 |\n| W2 | open | 7.00 |\n"
_SCRIPTS: Final[dict[str, str]] = json.loads(Path(__file__).with_name("scripts.json").read_text())
"""Texts in other scripts and signs."""


def _time(n: int) -> str:
    return f"2026-{n % 12 + 1:02}-{n % 28 + 1:02}T{n % 24:02}:{n % 60:02}:09.{n * 37 % 1000:03}Z"


def _fill(text: str) -> str:
    return (text * (LENGTH // len(text) + 1))[:LENGTH]


def _words(chance: random.Random, alphabet: str, low: int, high: int, sep: str) -> str:
    words: list[str] = []
    while sum(map(len, words)) < LENGTH:
        words.append("".join(chance.choices(alphabet, k=chance.randint(low, high))))
    return sep.join(words)


def _records(chance: random.Random) -> list[dict[str, object]]:
    return [
        {
            "id": chance.randint(1, 10**9),
            "name": f"item-{n}",
            "price": chance.randint(1, 99_999) / 100,
            "in_stock": True,
        }
        for n in range(24)
    ]


def samples() -> dict[str, str]:
    """Return the texts by the name of their kind."""
    chance = random.Random("token counts")
    lower, digits = "abcdefghijklmnopqrstuvwxyz", "0123456789"
    letters = lower + lower.upper()
    records = _records(chance)
    data = chance.randbytes(1100)
    made = {
        "english": _fill(_ENGLISH),
        "german": _fill(_GERMAN),
        "shouting": _fill(_ENGLISH.upper()),
        "python": _fill(_CODE),
        "shell": _fill(_SHELL),
        "minified_script": _fill(
            '!function(e,t){"use strict";var n=e[0]||{};for(var r=1;r<t.length;r++)n[r]=t[r]&&!n.q}(a,b);'
        ),
        "json": json.dumps(records),
        "json_indented": json.dumps(records[:14], indent=2),
        "json_escapes": json.dumps({"texts": [_SCRIPTS["chinese"], _CODE[:400], _SCRIPTS["emoji"]]}),
        "json_numbers": json.dumps([chance.randint(0, 999_999) for _ in range(190)], separators=(",", ":")),
        "csv": "\n".join(f"{r['id']},{r['name']},{r['price']}" for r in records * 2),
        "html": _fill(
            '<div class="row"><a href="/orders?id=17&amp;x=2">Order&nbsp;17</a><td>&euro;12.50</td></div>\n'
        ),
        "markdown_table": _fill(
            "| order | state | amount |\n|---|:-:|---:|\n| W1 | sent | 12.50 |\n| W2 | open | 7.00 |\n"
        ),
        "digits": "".join(chance.choices(digits, k=LENGTH)),
        "digit_groups": _words(chance, digits, 1, 6, " "),
        "floats": " ".join(f"{chance.random():.6f}" for _ in range(160)),
        "timestamps": " ".join(_time(n) for n in range(60)),
        "addresses": " ".join(".".join(str(chance.randint(0, 255)) for _ in range(4)) for _ in range(105)),
        "hex": data[:750].hex(),
        "hex_upper": data[:750].hex().upper(),
        "hex_dump": "\n".join(data[n : n + 16].hex(" ") for n in range(0, 500, 16)),
        "base64": base64.b64encode(data).decode(),
        "base64_url": base64.urlsafe_b64encode(data).decode(),
        "base32": base64.b32encode(data[:900]).decode(),
        "base85": base64.b85encode(data).decode(),
        "uuids": "\n".join(str(uuid.UUID(int=chance.getrandbits(128))) for _ in range(40)),
        "keys": _words(chance, letters + digits, 20, 40, "\n"),
        "random_lower": _words(chance, lower, 3, 12, " "),
        "random_lower_long": _words(chance, lower, 200, 400, " "),
        "random_letters": _words(chance, letters, 3, 12, " "),
        "random_upper": _words(chance, lower.upper(), 3, 12, " "),
        "single_letters": _words(chance, letters, 1, 1, " "),
        "genome": "".join(chance.choices("ACGT", k=LENGTH)),
        "punctuation": "".join(chance.choices("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~", k=LENGTH)),
        "spaced_punctuation": " ".join(chance.choices("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~", k=LENGTH // 2)),
        "printable": "".join(chance.choices([chr(c) for c in range(33, 127)], k=LENGTH)),
        "blanks": _fill("  \n \t\n\n   \t  \r\n    \n"),
        "control": "".join(chance.choices([chr(c) for c in range(1, 32)], k=LENGTH)),
        "latin_random": "".join(chance.choices([chr(c) for c in range(0xC0, 0x250)], k=LENGTH // 2)),
        "unicode_random": "".join(chance.choices([chr(c) for c in range(0x250, 0x2FFF)], k=LENGTH // 3)),
        "astral_random": "".join(chance.choices([chr(c) for c in range(0x10000, 0x1F000)], k=LENGTH // 4)),
        "private_use": "".join(chance.choices([chr(c) for c in range(0xE000, 0xF000)], k=LENGTH // 3)),
        "short_word": "Hi.",
        "one_digit": "7",
        "one_emoji": "🫠",
    }
    return made | {name: _fill(text) for name, text in _SCRIPTS.items()}
