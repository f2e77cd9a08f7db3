"""TextTokenizer: lossless, safe against typed markers, and readable by transformers."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from fledge.errors import ModelError
from fledge.tokens import SPECIAL_TOKENS, TextTokenizer, byte_alphabet, default_chat_template

TEXT = "It was a dark night; the rain fell. It wasn't the first 1234 nights.\n\n  caf\u00e9 \u4f60\u597d\n" * 20


def make(vocab_size: int = 300) -> TextTokenizer:
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator([TEXT], trainer)
    return TextTokenizer(inner, chat_template=default_chat_template())


TOKENIZER = make()


def write_gpt2_files(folder: Path) -> None:
    """GPT-2's own two files with the bytes and two merges."""
    alphabet = sorted(byte_alphabet().values())
    vocabulary = {token: n for n, token in enumerate([*alphabet, "he", "\u0120he", "<|endoftext|>"])}
    folder.mkdir()
    (folder / "encoder.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "vocab.bpe").write_text("#version: 0.2\nh e\n\u0120 he\n", encoding="utf-8")


@given(st.text())
def test_any_text_comes_back_and_its_token_bytes_add_up(text: str) -> None:
    ids = TOKENIZER.encode(text)
    assert TOKENIZER.decode(ids) == text
    assert TOKENIZER.decode_bytes(ids) == text.encode()
    table = TOKENIZER.token_bytes()
    assert sum(len(table[i]) for i in ids) == len(text.encode())


@given(st.lists(st.sampled_from([*SPECIAL_TOKENS, " ", "a", "<|", "|>"])).map("".join))
def test_typed_special_tokens_are_plain_text(text: str) -> None:
    ids = TOKENIZER.encode(text)
    assert not set(ids) & set(TOKENIZER.special_ids.values())
    assert TOKENIZER.decode(ids) == text


def test_special_tokens_come_first_in_their_order() -> None:
    assert list(TOKENIZER.special_ids.items()) == [(name, n) for n, name in enumerate(SPECIAL_TOKENS)]
    assert TOKENIZER.end_of_text_id == 0


def test_vocabulary_of_261_is_bytes_and_special_tokens() -> None:
    tokenizer = make(261)
    assert tokenizer.vocab_size == 261
    assert sorted(tokenizer.token_bytes()[5:]) == [bytes([byte]) for byte in range(256)]


def test_special_tokens_are_left_out_of_text_unless_kept() -> None:
    ids = [0, *TOKENIZER.encode("night"), 2]
    assert TOKENIZER.decode(ids) == "night"
    assert TOKENIZER.decode(ids, keep_special=True) == "<|endoftext|>night<|im_end|>"
    assert TOKENIZER.decode_bytes(ids) == b"night"


def test_half_a_character_has_exact_bytes() -> None:
    ids = make(261).encode("\u4f60")
    assert make(261).decode_bytes(ids[:2]) == "\u4f60".encode()[:2]


def test_batch_equals_one_by_one() -> None:
    texts = TEXT.split(" ")
    assert TOKENIZER.encode_batch(texts) == [TOKENIZER.encode(text) for text in texts]


def test_saved_and_loaded_is_the_same(tmp_path: Path) -> None:
    TOKENIZER.save(tmp_path / "run" / "tokenizer")
    for path in (tmp_path / "run", tmp_path / "run" / "tokenizer", tmp_path / "run/tokenizer/tokenizer.json"):
        loaded = TextTokenizer.from_folder(path)
        assert loaded.fingerprint == TOKENIZER.fingerprint
        assert loaded.encode(TEXT) == TOKENIZER.encode(TEXT)
        assert loaded.chat_template == TOKENIZER.chat_template
        assert loaded.roles == {"eos_token": "<|endoftext|>", "pad_token": "<|pad|>"}


def test_another_vocabulary_has_another_fingerprint() -> None:
    assert make(290).fingerprint != TOKENIZER.fingerprint


@pytest.mark.parametrize("model_type", [None, "gpt2", "qwen3"])
def test_transformers_loads_it_and_encodes_the_same(tmp_path: Path, model_type: str | None) -> None:
    from transformers import AutoTokenizer

    TOKENIZER.save(tmp_path)
    if model_type:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert theirs(TEXT)["input_ids"] == TOKENIZER.encode(TEXT)
    assert (theirs.eos_token_id, theirs.pad_token_id, len(theirs)) == (0, 3, TOKENIZER.vocab_size)
    theirs.save_pretrained(tmp_path / "again")
    again = TextTokenizer.from_folder(tmp_path / "again")
    assert again.fingerprint == TOKENIZER.fingerprint
    assert again.chat_template == TOKENIZER.chat_template


def test_gpt2_files_load_with_their_merges(tmp_path: Path) -> None:
    write_gpt2_files(tmp_path / "gpt2")
    tokenizer = TextTokenizer.from_folder(tmp_path / "gpt2")
    assert tokenizer.vocab_size == 259
    assert tokenizer.encode("he he") == [256, 257]
    assert tokenizer.end_of_text_id == 258
    assert 258 not in tokenizer.encode("<|endoftext|>")


def test_merges_txt_layout_is_the_same_tokenizer(tmp_path: Path) -> None:
    write_gpt2_files(tmp_path / "a")
    write_gpt2_files(tmp_path / "b")
    (tmp_path / "b/encoder.json").rename(tmp_path / "b/vocab.json")
    (tmp_path / "b/vocab.bpe").rename(tmp_path / "b/merges.txt")
    first, second = (TextTokenizer.from_folder(tmp_path / name) for name in "ab")
    assert first.fingerprint == second.fingerprint


def test_added_tokens_beside_gpt2_files_have_the_ids_that_transformers_gives_them(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    write_gpt2_files(tmp_path / "a")
    (tmp_path / "a/encoder.json").rename(tmp_path / "a/vocab.json")
    (tmp_path / "a/vocab.bpe").rename(tmp_path / "a/merges.txt")
    (tmp_path / "a/tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
    roles = {"pad_token": {"content": "<|pad|>"}, "additional_special_tokens": ["<|sep|>"]}
    (tmp_path / "a/special_tokens_map.json").write_text(json.dumps(roles))
    (tmp_path / "a/added_tokens.json").write_text(json.dumps({"<|pad|>": 261, "word": 259, "<|sep|>": 260}))
    theirs, ours = AutoTokenizer.from_pretrained(tmp_path / "a"), TextTokenizer.from_folder(tmp_path / "a")
    assert ours.special_ids == {name: theirs.convert_tokens_to_ids(name) for name in ours.special_ids}
    assert list(ours.special_ids) == ["<|endoftext|>", "<|sep|>", "<|pad|>"]
    assert ours.encode("a word he") == theirs("a word he")["input_ids"]
    (tmp_path / "a/added_tokens.json").write_text('{"<|sep|>": 300}')
    with pytest.raises(ModelError, match=r"added_tokens\.json: <\|sep\|> can't have the id 300"):
        TextTokenizer.from_folder(tmp_path / "a")


def test_byte_fallback_tokens_have_their_bytes() -> None:
    vocabulary = {"<unk>": 0, "</s>": 1, "\u2581a": 2, "<0xE4>": 3}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True, unk_token="<unk>"))
    inner.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    inner.add_special_tokens(["<unk>", "</s>"])
    tokenizer = TextTokenizer(inner, {"eos_token": "</s>"})
    assert tokenizer.token_bytes() == [b"", b"", b" a", b"\xe4"]
    assert tokenizer.end_of_text_id == 1


def test_an_added_token_that_is_not_special_has_its_own_bytes() -> None:
    tokenizer = make()
    tokenizer.inner.add_tokens(["<my thought\u00e9>"])
    tokenizer = TextTokenizer(tokenizer.inner)
    ids = tokenizer.encode("a <my thought\u00e9> b")
    assert tokenizer.decode_bytes(ids) == "a <my thought\u00e9> b".encode()


def test_a_tokenizer_that_cuts_and_pads_does_so_no_more(tmp_path: Path) -> None:
    inner = Tokenizer.from_str(TOKENIZER.inner.to_str())
    inner.enable_truncation(4)
    inner.enable_padding(length=4)
    inner.save(str(tmp_path / "tokenizer.json"))
    loaded = TextTokenizer.from_folder(tmp_path)
    assert [loaded.encode(text) for text in ("a", TEXT)] == [TOKENIZER.encode(text) for text in ("a", TEXT)]


def test_the_end_of_a_document_is_not_that_of_a_chat_models_turn() -> None:
    roles = {"eos_token": "<|im_end|>"}
    assert TextTokenizer(TOKENIZER.inner, roles).end_of_text_id == TOKENIZER.special_ids["<|endoftext|>"]


def test_wordpiece_has_no_token_bytes() -> None:
    inner = Tokenizer(models.WordPiece(vocab={"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    inner.decoder = decoders.WordPiece()
    with pytest.raises(ModelError, match="no pieces of the text's bytes"):
        TextTokenizer(inner).token_bytes()


def test_a_tokenizer_without_end_of_text_says_so() -> None:
    inner = Tokenizer(models.BPE(vocab={"a": 0}, merges=[]))
    with pytest.raises(ModelError, match="no end-of-text token"):
        _ = TextTokenizer(inner, {}).end_of_text_id


def test_a_mistyped_path_is_an_error_with_a_hint(tmp_path: Path) -> None:
    TOKENIZER.save(tmp_path / "tokens")
    with pytest.raises(ModelError, match=r"tokenz: no such folder; did you mean .*tokens\?"):
        TextTokenizer.from_folder(tmp_path / "tokenz")


def test_a_folder_without_tokenizer_lists_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no tokenizer there; looked for tokenizer\.json"):
        TextTokenizer.from_folder(tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("chat_template.jinja", b"caf\xe9"),
        ("tokenizer_config.json", b'{"chat_template": [{"name": "default"}]}'),
        ("tokenizer_config.json", b'{"chat_template": {"a": 1}}'),
    ],
)
def test_a_damaged_chat_template_is_one_line(tmp_path: Path, name: str, content: bytes) -> None:
    TextTokenizer(make().inner, chat_template=None).save(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match="the tokenizer there can't be read"):
        TextTokenizer.from_folder(tmp_path)


def test_a_tokenizer_whose_library_panics_is_damaged(tmp_path: Path) -> None:
    TOKENIZER.save(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    content["normalizer"] = {"type": "Replace", "pattern": {"String": ""}, "content": "xx"}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ModelError, match=r"damaged tokenizer \(.*\); train or copy it again"):
        TextTokenizer.from_folder(tmp_path)


@pytest.mark.parametrize("content", ["", "{", '{"model": 3}'])
def test_a_damaged_tokenizer_is_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ModelError, match=r"damaged tokenizer|can't be read") as caught:
        TextTokenizer.from_folder(tmp_path)
    assert "\n" not in str(caught.value)
