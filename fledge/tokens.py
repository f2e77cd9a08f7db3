"""Text to token ids and back: one wrapper over the `tokenizers` library, for any tokenizer.

Special tokens in text are plain text: no string that someone types becomes a special id. Only document ends
(`end_of_text_id`) and the chat template (`tokenizer.chat`) make special ids.
"""

import functools
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import tokenizers

from fledge import hub
from fledge.errors import ModelError, first_line

END_OF_TEXT, START_OF_TURN, END_OF_TURN, PADDING = "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"
SPECIAL_TOKENS = (END_OF_TEXT, START_OF_TURN, END_OF_TURN, PADDING, "<|reserved_0|>")

# How foreign tokenizers call the end of a document. Looked for before `eos_token`, which in chat models is
# the end of a turn.
_END_OF_TEXT_NAMES = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>")
_ROLES = ("eos_token", "pad_token", "bos_token", "unk_token")
_OWN_ROLES = {"eos_token": END_OF_TEXT, "pad_token": PADDING}
_FILES = ("tokenizer.json", "encoder.json + vocab.bpe", "vocab.json + merges.txt")


class TextTokenizer:
    """A tokenizer that never makes special ids from text and knows the exact bytes of every token."""

    def __init__(
        self, inner: tokenizers.Tokenizer, roles: Mapping[str, str] | None = None, chat_template: str | None = None
    ) -> None:
        """Wrap a tokenizer.

        Args:
            inner: taken over and changed: no truncation, no padding, special tokens in text are text, and marks
                of turns are special.
            roles: which special token is `eos_token`, `pad_token` ... for transformers; None: as in our own.
            chat_template: Jinja text, None if it has none.
        """
        inner.no_truncation()
        inner.no_padding()
        inner.encode_special_tokens = True
        # Some say of theirs that they are not special. A bar tells them from what answers and plain text may hold:
        # <think>, and runs of spaces.
        for token in inner.get_added_tokens_decoder().values():
            if not token.special and token.content in (chat_template or "") and re.search("[|\uff5c]", token.content):
                token.special = True
                inner.add_special_tokens([token])
        self.inner = inner
        self.chat_template = chat_template
        self.roles = {name: token for name, token in (_OWN_ROLES if roles is None else roles).items() if token}

    @classmethod
    def from_folder(cls, path: str | Path) -> "TextTokenizer":
        """The tokenizer in a folder: a tokenizer run, a model folder, GPT-2's own files, or a hub name.

        Raises:
            ModelError: there is none, it is damaged, or of a layout that is not known.
        """
        folder = find_folder(path)
        try:
            inner = _read_inner(folder)
            roles, template = _read_roles(folder), _read_chat_template(folder)
            inner.encode("It was.")  # some are found to be damaged only here
        except (OSError, ValueError, KeyError) as error:
            raise ModelError(f"{folder}: the tokenizer there can't be read ({first_line(error)})") from None
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # the library raises bare Exception, and its panics are not even that
            raise ModelError(f"{folder}: damaged tokenizer ({first_line(error)}); train or copy it again") from None
        return cls(inner, roles, template)

    def encode(self, text: str) -> list[int]:
        """The ids of a text; special tokens in it are encoded as plain text, and none are added."""
        return list(self.inner.encode(text, add_special_tokens=False).ids)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text, as `encode` gives them, in parallel."""
        return [encoding.ids for encoding in self.inner.encode_batch_fast(list(texts), add_special_tokens=False)]

    def encode_with_offsets(self, text: str, with_special: bool = False) -> tuple[list[int], list[tuple[int, int]]]:
        """The ids of a text, and for each the characters [start, end) that it covers.

        Args:
            with_special: special tokens in the text become special ids: for what a chat template wrote.
        """
        inner = self._with_special if with_special else self.inner
        encoding = inner.encode(text, add_special_tokens=False)
        return list(encoding.ids), list(encoding.offsets)

    @functools.cached_property
    def _with_special(self) -> tokenizers.Tokenizer:
        inner = tokenizers.Tokenizer.from_str(self.inner.to_str())
        inner.encode_special_tokens = False
        return inner

    def decode(self, ids: Sequence[int], keep_special: bool = False) -> str:
        """The text of ids; bytes that are no UTF-8 become U+FFFD, special tokens vanish unless kept."""
        return str(self.inner.decode([int(i) for i in ids], skip_special_tokens=not keep_special))

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """The exact bytes of ids, also where they are no UTF-8; special tokens have none."""
        table = self.token_bytes()
        return b"".join(table[int(i)] for i in ids)

    def token_bytes(self) -> list[bytes]:
        """The bytes of every id; special tokens and unused ids have none.

        Over the ids of a text they add up to the text's UTF-8 bytes.
        Raises:
            ModelError: a tokenizer whose tokens are no pieces of the text (WordPiece).
        """
        return self._token_bytes

    @functools.cached_property
    def _token_bytes(self) -> list[bytes]:
        to_bytes = _piece_decoder(self.inner)
        special = set(self.special_ids.values())
        added = self.inner.get_added_tokens_decoder()
        table = [b""] * self.vocab_size
        for piece, number in self.inner.get_vocab(with_added_tokens=True).items():
            if number not in special:
                table[number] = piece.encode() if number in added else to_bytes(piece)
        return table

    @functools.cached_property
    def vocab_size(self) -> int:
        """One more than the highest id: the rows that an embedding needs."""
        return 1 + max(self.inner.get_vocab(with_added_tokens=True).values())

    @functools.cached_property
    def special_ids(self) -> dict[str, int]:
        """The id of each special token, in order of id."""
        added = self.inner.get_added_tokens_decoder()
        return {token.content: number for number, token in sorted(added.items()) if token.special}

    @functools.cached_property
    def end_of_text_id(self) -> int:
        """The id that ends a document.

        Raises:
            ModelError: the tokenizer has no such token.
        """
        for name in (*_END_OF_TEXT_NAMES, self.roles.get("eos_token")):
            number = self.inner.token_to_id(name) if name else None
            if number is not None:
                return int(number)
        raise ModelError("the tokenizer has no end-of-text token; set eos_token in its tokenizer_config.json")

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hex SHA-256 of what decides the ids of a text: equal for equal tokenizers, whoever saved them."""
        content = json.loads(self.inner.to_str())
        for name in ("version", "truncation", "padding", "post_processor", "decoder"):
            content.pop(name, None)
        content["added_tokens"] = [[t["id"], t["content"], t["special"]] for t in content["added_tokens"]]
        canonical = json.dumps(_without(content, "trim_offsets"), sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(canonical.encode()).hexdigest()

    def save(self, folder: Path) -> None:
        """Write tokenizer.json and its companions so that transformers' AutoTokenizer loads it, too."""
        folder.mkdir(parents=True, exist_ok=True)
        settings: dict[str, Any] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            **self.roles,
        }
        self.inner.save(str(folder / "tokenizer.json"))
        _write_json(folder / "tokenizer_config.json", settings)
        _write_json(folder / "special_tokens_map.json", self.roles)
        if self.chat_template is not None:
            (folder / "chat_template.jinja").write_text(self.chat_template, encoding="utf-8", newline="\n")


def default_chat_template() -> str:
    """ChatML as a Jinja template; its generation blocks hold what an assistant says and its end of turn."""
    return resources.files("fledge").joinpath("chat_template.jinja").read_text(encoding="utf-8")


def find_folder(path: str | Path) -> Path:
    """The folder that holds the tokenizer files: the path itself, or `tokenizer/` or `model/` in it.

    Raises:
        ModelError: no such folder, or no tokenizer in it.
    """
    folder = hub.folder(path, "tokenizer", "run, tokenizer or model folder")
    if folder.is_file():
        folder = folder.parent
    for candidate in (folder, folder / "tokenizer", folder / "model"):
        if _layout(candidate):
            return candidate
    raise ModelError(f"{path}: no tokenizer there; looked for {', '.join(_FILES)}")


def _layout(folder: Path) -> str | None:
    for layout in _FILES:
        if all((folder / name).is_file() for name in layout.split(" + ")):
            return layout
    return None


def _read_inner(folder: Path) -> tokenizers.Tokenizer:
    layout = _layout(folder)
    if layout == "tokenizer.json":
        return tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    vocabulary, merges = [folder / name for name in str(layout).split(" + ")]
    declared = _read_json(folder / "tokenizer_config.json").get("tokenizer_class", "GPT2Tokenizer")
    if not str(declared).startswith("GPT2Tokenizer"):
        raise ValueError(f"{declared} with vocab.json and merges.txt is not implemented; it needs a tokenizer.json")
    inner = _gpt2_tokenizer(_read_json(vocabulary), merges.read_text(encoding="utf-8"))
    _add_tokens(inner, folder)
    return inner


def _gpt2_tokenizer(vocabulary: dict[str, int], merges: str) -> tokenizers.Tokenizer:
    """GPT-2's tokenizer from its own two files (a first line `#version` in the merges is skipped)."""
    from tokenizers import decoders, models, pre_tokenizers

    lines = [line for line in merges.split("\n") if line and not line.startswith("#version")]
    pairs = [(left, right) for left, right in (line.split(" ") for line in lines)]
    inner = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=pairs))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    if END_OF_TEXT in vocabulary:
        inner.add_special_tokens([tokenizers.AddedToken(END_OF_TEXT, special=True, normalized=False)])
    return inner


def _add_tokens(inner: tokenizers.Tokenizer, folder: Path) -> None:
    """What older versions of transformers wrote beside the two files: tokens that were added, some of them special."""
    roles = _read_json(folder / "special_tokens_map.json").values()
    entries = [entry for role in roles for entry in (role if isinstance(role, list) else [role])]
    special = {entry["content"] if isinstance(entry, dict) else entry for entry in entries}
    listed = _read_json(folder / "added_tokens.json")
    for name, number in sorted(listed.items(), key=lambda item: item[1]):
        inner.add_tokens([tokenizers.AddedToken(name, special=name in special, normalized=name not in special)])
        if inner.token_to_id(name) != number:
            raise ValueError(f"added_tokens.json: {name} can't have the id {number}")


def _read_roles(folder: Path) -> dict[str, str]:
    found = _read_json(folder / "special_tokens_map.json") | _read_json(folder / "tokenizer_config.json")
    roles = {}
    for name in _ROLES:
        token = found.get(name)
        content = token.get("content") if isinstance(token, dict) else token
        if isinstance(content, str):
            roles[name] = content
    return roles or {"eos_token": END_OF_TEXT}


def _read_chat_template(folder: Path) -> str | None:
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    template = _read_json(folder / "tokenizer_config.json").get("chat_template")
    if isinstance(template, list):  # several, by name
        template = next((entry["template"] for entry in template if entry.get("name") == "default"), None)
    if not isinstance(template, str | None):
        raise ValueError("its chat_template is no text")
    return template


def _piece_decoder(inner: tokenizers.Tokenizer) -> Any:
    """A function from a vocabulary entry to its bytes, by the kind of decoder that the tokenizer has."""
    decoder = json.loads(inner.to_str()).get("decoder") or {}
    kinds = {part["type"] for part in decoder.get("decoders", [decoder]) if "type" in part}
    if "ByteLevel" in kinds:
        table = {character: byte for byte, character in byte_alphabet().items()}
        return lambda piece: bytes(table[character] for character in piece)
    if kinds & {"ByteFallback", "Metaspace"}:
        return _sentencepiece_bytes
    raise ModelError("the tokens of this tokenizer are no pieces of the text's bytes (not byte-level)")


def _sentencepiece_bytes(piece: str) -> bytes:
    if re.fullmatch("<0x[0-9A-F]{2}>", piece):
        return bytes([int(piece[3:5], 16)])
    return piece.replace("\u2581", " ").encode()


def byte_alphabet() -> dict[int, str]:
    """The printable character that stands for each byte in byte-level vocabularies.

    Printable Latin-1 stands for itself; the other 68 bytes take the code points from 256 on, in order.
    Source: Radford et al. 2019 (GPT-2), its encoder.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}


def _without(value: Any, key: str) -> Any:
    if isinstance(value, dict):
        return {name: _without(inner, key) for name, inner in value.items() if name != key}
    return [_without(inner, key) for inner in value] if isinstance(value, list) else value


def _read_json(file: Path) -> dict[str, Any]:
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {}


def _write_json(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
