"""Texts to token ids with a model's own ``tokenizer.json``.

Padding and truncation baked into the file are switched off: texts are packed, never padded, and
truncation is done and counted here. Knows no weights.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, chain
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tarsdb.errors import DataError, ModelFormatError
from tarsdb.records import dataclass

if TYPE_CHECKING:
    import tokenizers

MAX_TOKENIZER_BYTES = 256 << 20
# A text is tokenised in full up to this many characters per token it may have; of a longer one
# the beginning is enough, unless it makes too few tokens.
_CHARACTERS_PER_TOKEN = 32
CHARACTERS_AT_A_TIME = 1 << 18
"""What the library is given in one call, which nothing can stop, unless one text is longer."""
_CUT_MARGIN = 256  # tokens at a cut that a longer text could still have changed


@dataclass(frozen=True)
class TokenizedTexts:
    """Token ids of many texts, packed: text i is ``ids[offsets[i]:offsets[i + 1]]``.

    ``found`` is how many tokens each text had before it was cut; of an extremely long text only
    the beginning is counted. ``types`` are the token types of pairs, absent where all are 0.
    """

    ids: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int64]
    found: npt.NDArray[np.int64]
    types: npt.NDArray[np.int32] | None = None

    def take(
        self, rows: npt.NDArray[np.int64], values: npt.NDArray[np.int32]
    ) -> npt.NDArray[np.int32]:
        """Return the part of ``ids`` or ``types`` that belongs to some texts, one after another."""
        return np.concatenate([values[self.offsets[row] : self.offsets[row + 1]] for row in rows])


class TextTokenizer:
    """The tokenizer of one model. Thread-safe.

    Parameters
    ----------
    data : bytes
        ``tokenizer.json``.
    max_length : int
        Tokens kept of a text, special tokens included.
    lower : bool
        Lower-case texts first.
    """

    def __init__(self, data: bytes, max_length: int, *, lower: bool = False):
        self.max_length = max_length
        self._lower = lower
        self._tokenizer = load_tokenizer(data)
        self._suffix = self._special_suffix()

    def encode(
        self, texts: Sequence[str], check: Callable[[], None] = lambda: None
    ) -> TokenizedTexts:
        """Tokenise texts, special tokens included, each cut to ``max_length``.

        A cut text keeps its first tokens and the special tokens at its end, as Hugging Face's
        truncation does. ``check`` is called between texts now and then, and may raise. DataError
        when a text is no valid Unicode.
        """
        prepared = [self._prepare(text) for text in texts]
        rows = self._ids([self._shorten(text) for text in prepared], check)
        for row, text in enumerate(prepared):
            if len(text) > self._enough and len(rows[row]) <= self.max_length + _CUT_MARGIN:
                check()
                rows[row] = self._long_ids(text)
        found = [len(ids) for ids in rows]
        for row, count in enumerate(found):
            if count > self.max_length:
                ids = rows[row]
                rows[row] = ids[: self.max_length - self._suffix] + ids[count - self._suffix :]
        return _packed(rows, found)

    def encode_pairs(
        self, pairs: Sequence[tuple[str, str]], check: Callable[[], None] = lambda: None
    ) -> TokenizedTexts:
        """Tokenise pairs the way the model's template joins them, e.g. [CLS] a [SEP] b [SEP].

        A pair of more than ``max_length`` tokens loses the last tokens of its longer text first, as
        Hugging Face's ``longest_first``. ``check`` is called as by :meth:`encode`. DataError when a
        text is no valid Unicode.
        """
        distinct = {text: number for number, text in enumerate(dict.fromkeys(chain(*pairs)))}
        pieces = self._pieces([self._prepare(text) for text in distinct], check)
        room = self.max_length - self._tokenizer.num_special_tokens_to_add(is_pair=True)
        rows, types, found = [], [], []
        for pair in pairs:
            first, second = (copy.copy(pieces[distinct[text]]) for text in pair)
            found.append(len(first) + len(second) + self.max_length - room)
            if len(first) + len(second) > room:
                kept = _longest_first(len(first), len(second), max(room, 0))
                first.truncate(kept[0])
                second.truncate(kept[1])
            with tokenizing():
                joined = self._tokenizer.post_process(first, second)
            rows.append(joined.ids)
            types.append(joined.type_ids)
        return _packed(rows, found, types)

    def tokens(self, text: str) -> list[int]:
        """Return all token ids of a text, special tokens included, nothing cut."""
        return self._ids([self._prepare(text)])[0]

    def spans(self, text: str) -> list[list[tuple[int, int]]]:
        """Return where each token lies in a text, (start, end) in characters, grouped by word.

        Special tokens, and tokens that stand for no character, are left out.
        """
        lowered = self._prepare(text)
        shown = lowered if len(lowered) == len(text) else text  # places must be the caller's
        encoding = self._encodings([shown], special=False, places=True)[0]
        groups: list[list[tuple[int, int]]] = []
        previous: int | None = None
        for word, (start, end) in zip(encoding.word_ids, encoding.offsets, strict=True):
            if start == end:
                continue
            if word is None or word != previous or not groups:
                groups.append([])
            groups[-1].append((start, end))
            previous = word
        return groups

    @property
    def highest_id(self) -> int:
        """Largest token id the tokenizer can make, -1 for an empty vocabulary."""
        return max(self._tokenizer.get_vocab(True).values(), default=-1)

    @property
    def _enough(self) -> int:
        return self.max_length * _CHARACTERS_PER_TOKEN + 1024

    def _prepare(self, text: str) -> str:
        return text.lower() if self._lower else text

    def _shorten(self, text: str, size: int | None = None) -> str:
        """Return a beginning of a text that ends between two words, if it has any."""
        size = self._enough if size is None else size
        if len(text) <= size:
            return text
        cut = max(text.rfind(space, size // 2, size) for space in " \n\t")
        return text[: cut if cut > 0 else size]

    def _long_ids(self, text: str) -> list[int]:
        """Ids of a text whose beginning made few tokens: read on until there are enough."""
        size = self._enough
        while True:
            size *= 4
            ids = self._ids([self._shorten(text, size)])[0]
            if size >= len(text) or len(ids) > self.max_length + _CUT_MARGIN:
                return ids

    def _ids(self, texts: list[str], check: Callable[[], None] = lambda: None) -> list[list[int]]:
        return [encoding.ids for encoding in self._encodings(texts, check)]

    def _pieces(self, texts: list[str], check: Callable[[], None]) -> list[tokenizers.Encoding]:
        """Encode texts without special tokens; of a very long one only the beginning if it can."""
        found = self._encodings([self._shorten(text) for text in texts], check, special=False)
        for row, text in enumerate(texts):
            if len(text) > self._enough and len(found[row]) <= self.max_length + _CUT_MARGIN:
                check()
                found[row] = self._encodings([text], special=False)[0]
        return found

    def _encodings(
        self, texts: list[str], check: Callable[[], None] = lambda: None, *, special: bool = True,
        places: bool = False,
    ) -> list[tokenizers.Encoding]:  # fmt: skip
        tokenizer = self._tokenizer
        encode = tokenizer.encode_batch if places else tokenizer.encode_batch_fast
        found: list[tokenizers.Encoding] = []
        for some in _batches(texts):
            if found:
                check()
            with tokenizing():
                found += encode(some, add_special_tokens=special)
        return found

    def _special_suffix(self) -> int:
        """Count the special tokens that end every text, e.g. 1 for BERT's [SEP]."""
        with tokenizing():
            empty, some = self._tokenizer.encode(""), self._tokenizer.encode("a")
        if any(some.type_ids):
            raise ModelFormatError("tokenizer.json gives single texts a token type other than 0")
        if not some.ids:
            raise ModelFormatError("tokenizer.json makes no tokens of the text 'a'")
        if not empty.ids:
            return 0
        common = 0
        while common < len(empty.ids) and empty.ids[common] == some.ids[common]:
            common += 1
        return len(empty.ids) - common


def _batches(texts: list[str]) -> Iterator[list[str]]:
    """Yield some texts at a time, about as many as the library is given at once."""
    if len(texts) == 1:
        yield texts
        return
    start = size = 0
    for end, text in enumerate(texts, 1):
        size += len(text)
        if size >= CHARACTERS_AT_A_TIME or end == len(texts):
            yield texts[start:end]
            start, size = end, 0


def _packed(
    rows: list[list[int]], found: list[int], types: list[list[int]] | None = None
) -> TokenizedTexts:
    offsets = list(accumulate(map(len, rows), initial=0))
    try:
        ids, marks = (
            None
            if lists is None
            else np.fromiter(chain.from_iterable(lists), np.int32, offsets[-1])
            for lists in (rows, types)
        )
    except OverflowError as error:  # no vocabulary is that large
        raise ModelFormatError("tokenizer.json made a token or type over 2147483647") from error
    assert ids is not None
    return TokenizedTexts(ids, np.array(offsets, np.int64), np.array(found, np.int64), marks)


def _longest_first(first: int, second: int, room: int) -> tuple[int, int]:
    """Share ``room`` tokens, too few, between two texts: cut the longer one, then both alike."""
    short, long = min(first, second), max(first, second)
    long = short if short > room else max(short, room - short)
    if short + long > room:
        short, long = room // 2, room - room // 2
    return (long, short) if first > second else (short, long)


@contextlib.contextmanager
def tokenizing(what: str = "a text") -> Iterator[None]:
    """Give what the library raises our types: DataError of a text, else ModelFormatError.

    Of a ``tokenizer.json`` that disagrees with itself it raises bare Exceptions, or panics: those
    are no Exceptions at all.
    """
    try:
        yield
    except (TypeError, UnicodeError) as error:
        raise DataError(f"{what} is no string, or no valid Unicode: {error}") from error
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        raise ModelFormatError(f"tokenizer.json cannot take {what} apart: {error}") from error


def load_tokenizer(data: bytes) -> tokenizers.Tokenizer:
    """Return the tokenizer of a ``tokenizer.json``, without padding and truncation."""
    if len(data) > MAX_TOKENIZER_BYTES:
        raise ModelFormatError(
            f"tokenizer.json has {len(data)} bytes, the limit is {MAX_TOKENIZER_BYTES}"
        )
    import tokenizers  # on first need: keeps `import tarsdb` light

    try:
        tokenizer = tokenizers.Tokenizer.from_str(data.decode("utf-8"))
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # as of tokenizing()
        raise ModelFormatError(f"tokenizer.json is not usable: {error}") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer
