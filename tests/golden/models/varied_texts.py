"""Texts that try a tokenizer and an encoder: made by a fixed seed, the same everywhere.

Knows no model. ``varied_texts(n)`` always starts with the hand-written ones.
"""

from __future__ import annotations

import random

HAND_WRITTEN = (
    "", " ", "\n\t \r\n", "a", ".", "?!...,;", "0", "3.14159265358979", "hello world",
    "How do I parse a date from a string?", "HOW DO I PARSE A DATE FROM A STRING?",
    "Return the number of items in a container.", "naïve café résumé coöperate", "Straße İstanbul",
    "ﬁne ligature ½ ² ™", "日本語のテキストを解析する方法", "这是一个中文句子，用于测试。",
    "한국어 문장입니다", "Привет, мир! Как дела?", "مرحبا بالعالم", "שלום עולם", "नमस्ते दुनिया",
    "สวัสดีชาวโลก", "Γειά σου Κόσμε", "mixed English и русский 和中文 with עברית",
    "\U0001f600\U0001f680 party time \U0001f389\U0001f389", "\U0001f468‍\U0001f469‍\U0001f467 family",
    "e\u0301 combining and é composed", "zero\u200bwidth\u00adsoft\ufeffmark",
    "nul\x00 bell\x07 esc\x1b[0m del\x7f",
    "\ufffd\uffff private \ue000", "x" * 99, "x" * 100, "x" * 101, "x" * 5000, "ab " * 2000,
    "[CLS] literal [SEP] special [MASK] tokens [PAD] [UNK]", "##ing ##ed un##do",
    "https://example.org/a/b?c=d&e=f#g", "def f(x: int) -> str:\n    return f'{x!r}'  # comment",
    "SELECT id, emb <=> :q AS d FROM docs WHERE tenant = 7 ORDER BY d LIMIT 10;",
    "中" * 600, "\U0001f600" * 400, "word " * 254, "word " * 253, "word " * 255,
    "\n" * 10000 + "end",
    " " * 20000 + "far behind " + " " * 20000 + "the spaces", "a." * 3000,
    "supercalifragilistic" * 4,
)  # fmt: skip
_WORDS = (
    "return the value of given object file list string function if not raises error when number "
    "parse date time socket server thread lock queue tree node graph vector database index query "
    "transaction commit snapshot memory page cache model token encode decode language animal river "
    "mountain cooking recipe music guitar physics quantum biology cell history empire economy "
    "price travel airport weather storm poetry sonnet football match doctor fever medicine law "
    "court and or but because while quickly slowly never always under over between "
    "electroencephalography"
).split()
_SCRIPTS = (
    "абвгдежзик",
    "αβγδεζηθ",
    "漢字仮名交文",
    "ابتثجحخ",
    "אבגדהוז",
    "कखगघचछ",
    "กขคงจฉ",
    "😀🚀🎉🐍🔥",
)
_ODD = ("\t", "\n", "\u00a0", "\u200b", "\x00", "—", "…", "’", "\u2028", "\ufffd", "\u0301")


def varied_texts(count: int, seed: int = 20_26) -> list[str]:
    """Return ``count`` texts, the hand-written ones first."""
    rng = random.Random(seed)
    made = [_text(rng, number % 8) for number in range(max(0, count - len(HAND_WRITTEN)))]
    return [*HAND_WRITTEN, *made][:count]


def _text(rng: random.Random, kind: int) -> str:
    words = rng.choices(_WORDS, k=min(700, int(rng.lognormvariate(3.3, 1.1)) + 1))
    if kind == 1:
        words = [word.upper() if rng.random() < 0.3 else word.title() for word in words]
    elif kind == 2:
        script = rng.choice(_SCRIPTS)
        words = ["".join(rng.choices(script, k=rng.randint(1, 6))) for _ in words]
    elif kind == 3:
        words = [word + rng.choice(_ODD) if rng.random() < 0.2 else word for word in words]
    elif kind == 4:
        words = [str(rng.randint(0, 10**9)) if rng.random() < 0.4 else word for word in words]
    elif kind == 5:
        alphabet = "abcdefghijklmnopqrstuvwxyz0123456789_-./"
        words = ["".join(rng.choices(alphabet, k=rng.randint(1, 140))) for _ in words[:40]]
    elif kind == 6:
        words = [
            rng.choice((word, "".join(rng.choices(rng.choice(_SCRIPTS), k=3)))) for word in words
        ]
    elif kind == 7:
        words = ["".join(chr(rng.randint(32, 0x2FFF)) for _ in range(5)) for _ in words[:60]]
    return rng.choice((" ", " ", "  ", "\n", ", ")).join(words)
