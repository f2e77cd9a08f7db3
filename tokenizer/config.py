"""Settings of `fledge tokenizer`; values and their reasons are in configs/tokenizer/."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from fledge.config import BadShare, CommandConfig, Tokens

Megabytes = Annotated[float, Field(json_schema_extra={"unit": "MB"})]
TextField = Annotated[str, Field(min_length=1, description="field or column that holds the text of a row")]


class TextInputConfig(CommandConfig):
    """What every command that reads text has: the inputs, and how their rows become text."""

    input: list[str] = Field(min_length=1, description="file, folder, glob, hub name or village:WORLD/KIND; repeatable")
    text_field: TextField = "text"
    html: bool = Field(False, description="that field holds HTML pages; keep their main text")
    max_bad_share: BadShare = 0.01


class TrainConfig(TextInputConfig):
    """Train a tokenizer on text.

    Inputs are txt, md, json, jsonl, csv, tsv, parquet and html files (also .gz and .zst), folders, globs, hub
    names and village:WORLD/KIND. Every kind is lossless: what the vocabulary lacks falls back to bytes.
    """

    stage: ClassVar[str] = "tokenizer"
    command: ClassVar[str] = "train"

    kind: Literal["bpe", "word", "char", "unigram"] = Field(
        "bpe", description="byte-level byte-pair encoding; whole words; characters; unigram pieces"
    )
    vocab_size: Tokens = Field(
        8192, ge=1, le=2**24, description="256 bytes and 5 special tokens included; for char the most it may be"
    )
    sample_megabytes: Megabytes = Field(
        100, gt=0, description="learn from about this much text, taken evenly from all inputs"
    )


class ShowConfig(CommandConfig):
    """Show text as tokens: colours, ids and bytes; with --chat which tokens of a conversation are learned."""

    stage: ClassVar[str] = "tokenizer"
    command: ClassVar[str] = "show"
    makes_run: ClassVar[bool] = False

    tokenizer: str = Field(
        description="a tokenizer run, a model folder or a hub name", json_schema_extra={"argument": True}
    )
    text: str | None = Field(None, description="the text to show")
    input: list[str] = Field([], description="show the first documents of these files")
    chat: str | None = Field(None, description='a file of {"messages": [...]} rows; learned tokens are coloured')
    max_tokens: Tokens = Field(400, ge=1, description="shown of a text or conversation")
    text_field: TextField = "text"
    max_rows: int = Field(3, ge=1, description="shown of a file", json_schema_extra={"unit": "rows"})

    @model_validator(mode="after")
    def _has_something_to_show(self) -> "ShowConfig":
        if self.text is None and not self.input and self.chat is None:
            raise ValueError("nothing to show: give --text TEXT, --input FILE or --chat FILE")
        return self


class CompareConfig(TextInputConfig):
    """Compare tokenizers on text: bytes per token, lossless or not, unused tokens."""

    stage: ClassVar[str] = "tokenizer"
    command: ClassVar[str] = "compare"
    makes_run: ClassVar[bool] = False

    tokenizers: list[str] = Field(
        min_length=1,
        description="tokenizer runs, model folders, GPT-2's own files or hub names",
        json_schema_extra={"argument": True},
    )
