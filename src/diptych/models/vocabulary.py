"""What each token of a model is as bytes. For those who put answers together (frontend) or guide them (workers)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diptych.core.errors import ModelError

_SPACE_MARK = "\N{LOWER ONE EIGHTH BLOCK}".encode()
"""How SentencePiece writes a space."""
_BYTE_TOKEN_LENGTH = len("<0x00>")


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """All tokens, indexed by id; ids without a token are empty."""

    token_bytes: list[bytes]
    """Special tokens have their names, such as `<|im_end|>`."""
    special_token_ids: frozenset[int]
    """Tokens that are no text and never shown."""
    is_byte_level: bool
    """Whether a token is the same bytes wherever it stands; otherwise (SentencePiece) its neighbours matter."""
    encode: Callable[[str], list[int]]
    """Text to tokens, as the model was trained on them; nothing is put around."""

    @property
    def size(self) -> int:
        """Tokens, from 0 to the highest id."""
        return len(self.token_bytes)


def load_vocabulary(model_dir: Path) -> Vocabulary:
    """Read the vocabulary of the OpenVINO model in `model_dir`; takes some 0.3 s.

    Raises: ModelError if there is no tokenizer.
    """
    return vocabulary_of(load_tokenizer(model_dir))


def load_tokenizer(model_dir: Path) -> Any:
    """Return the `openvino_genai.Tokenizer` of the OpenVINO model in `model_dir`.

    Raises: ModelError if there is none.
    """
    import openvino_genai  # noqa: PLC0415  importing this package must stay cheap

    try:
        tokenizer = openvino_genai.Tokenizer(str(model_dir))
        tokenizer.get_vocab()  # only this tells whether the files were there
    except RuntimeError as error:
        reason = str(error).strip().partition("\n")[0]
        raise ModelError(f"{model_dir} holds no OpenVINO tokenizer: {reason}") from error
    return tokenizer


def vocabulary_of(tokenizer: Any) -> Vocabulary:
    """Return the vocabulary of an `openvino_genai.Tokenizer`."""
    pieces: Mapping[bytes, int] = tokenizer.get_vocab()
    size = max(pieces.values()) + 1
    each_token = [[token_id] for token_id in range(size)]
    shown: list[str] = tokenizer.decode(each_token, skip_special_tokens=False)
    plain: list[str] = tokenizer.decode(each_token)
    special = frozenset(token_id for token_id in range(size) if shown[token_id] and not plain[token_id])
    token_bytes = [b""] * size
    for piece, token_id in pieces.items():
        token_bytes[token_id] = piece
    # OpenVINO drops bytes that are no UTF-8, where other stacks (and we) show U+FFFD.
    is_byte_level = all(
        token_bytes[token_id].decode("utf-8", "ignore") == plain[token_id]
        for token_id in range(size)
        if token_id not in special
    )
    if not is_byte_level:
        token_bytes = [
            piece if token_id in special else _sentencepiece_bytes(piece) for token_id, piece in enumerate(token_bytes)
        ]

    def encode(text: str) -> list[int]:
        token_ids: list[int] = tokenizer.encode(text, add_special_tokens=False).input_ids.data[0].tolist()
        return token_ids

    return Vocabulary(token_bytes, special, is_byte_level, encode)


def _sentencepiece_bytes(piece: bytes) -> bytes:
    """Turn `▁word` into ` word` and `<0x0A>` into a newline."""
    if piece.startswith(b"<0x") and piece.endswith(b">") and len(piece) == _BYTE_TOKEN_LENGTH:
        return bytes.fromhex(piece[3:5].decode())
    return piece.replace(_SPACE_MARK, b" ")
