"""`fledge finetune chat`: talk to a model in the terminal."""

import contextlib
import dataclasses
import json
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from finetune import vocabulary
from finetune.config import ChatConfig
from fledge import console, device
from fledge.data.messages import Message, check_roles
from fledge.endings import declared_ids, end_ids
from fledge.errors import DataError, FledgeError, ModelError, UsageError
from fledge.models import folder as model_folder
from fledge.models import generation
from fledge.models.generation import Sampling
from fledge.models.loaded import LoadedModel, load
from tokenizer.chat import render

HELP = """/reset             forget the conversation
/system TEXT       what the model is told first; alone: nothing
/temperature T     0: always the likeliest token
/save FILE         the conversation, as {"messages": [...]}
/load FILE         go on with a saved one
/quit              or Ctrl-D
A line that ends with a backslash goes on; \"\"\" begins and ends a text of several lines.
Ctrl-C stops an answer."""
FENCE = '"""'


def run(settings: ChatConfig) -> dict[str, Any]:
    """Answer `--prompt`, or the lines of stdin one after the other; see ChatConfig.

    Raises:
        UsageError: the prompt is empty.
    """
    if settings.prompt is not None and not settings.prompt.strip():
        raise UsageError("--prompt: is empty; say something, or leave it out for a conversation")
    talk = Talk(settings)
    if settings.prompt is not None:
        talk.say(settings.prompt)
    else:
        before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))  # Ctrl-C only ends an answer or a line
        try:
            _loop(talk)
        finally:
            signal.signal(signal.SIGTERM, before)
    return {"model": str(talk.path), "messages": talk.messages}


class Talk:
    """A conversation with a model.

    Raises:
        ModelError: no model there, a classifier, or a model that knows no turns.
    """

    def __init__(self, settings: ChatConfig) -> None:
        self.path = model_folder.find_model(settings.model)
        content = model_folder.read_config(self.path)
        if (content.get("architectures") or [""])[0].endswith("ForSequenceClassification"):
            what = "a classifier, which labels texts; use fledge finetune predict"
            if len(content.get("id2label", "01")) == 1:
                what = "a reward model, which scores answers; use fledge rlhf score"
            raise ModelError(f"{self.path}: {what} {self.path}")
        self._loaded = load(self.path, device=device.resolve_device(settings.device, "--device"))
        self.sampling = Sampling(
            max_new_tokens=settings.max_new_tokens,
            temperature=settings.temperature,
            top_p=settings.top_p,
            repetition_penalty=settings.repetition_penalty,
            stop_ids=_stop_ids(self.path, self._loaded),
            seed=settings.seed,
        )
        self.set_system(settings.system or "")

    def set_system(self, text: str) -> None:
        """Put a system message first, or none, and forget the rest."""
        self.messages: list[Message] = [{"role": "system", "content": text}] if text else []

    def say(self, text: str) -> None:
        """Say something and write the answer to stdout, piece by piece; what Ctrl-C leaves of it is the answer.

        Raises:
            DataError: the text alone is longer than the context has room for.
        """
        self.messages, prompt, room = self._fitted([*self.messages, {"role": "user", "content": text}])
        answer = ""
        try:
            for piece in self._pieces(prompt, room):
                console.write(piece)
                answer += piece
        finally:
            print(flush=True)
            self.messages.append({"role": "assistant", "content": answer})

    def _pieces(self, prompt: list[int], room: int) -> Iterator[str]:
        # Each turn draws anew, so that the same words do not get the same answer for ever.
        seed = self.sampling.seed + len(self.messages)
        limit = min(self.sampling.max_new_tokens, room)
        sampling = dataclasses.replace(self.sampling, max_new_tokens=limit, seed=seed)
        return generation.stream_text(self._loaded.model, self._loaded.tokenizer, prompt, sampling)

    def _fitted(self, messages: list[Message]) -> tuple[list[Message], list[int], int]:
        """The messages, without the oldest turns if there is no room, their ids, and the tokens left for an answer."""
        context = generation.context_of(self._loaded.model)
        wanted = min(self.sampling.max_new_tokens, context // 2)
        first = 1 if messages[0]["role"] == "system" else 0
        dropped = 0
        while True:
            ids = render(self._loaded.tokenizer, messages, add_generation_prompt=True).ids
            if len(ids) + wanted <= context:
                break
            if len(messages) <= first + 2:
                raise DataError(
                    f"the message has {len(ids)} tokens with its turn's marks; the context of {context} holds "
                    f"{context - wanted} beside an answer of {wanted}: shorten it, or lower --max-new-tokens"
                )
            del messages[first : first + 2]
            dropped += 1
        if dropped:
            console.note(f"(the context of {context} tokens is full: the oldest {dropped} turns are forgotten)")
        return messages, ids, context - len(ids)

    def save(self, file: str) -> None:
        """Write the conversation as a row of {"messages": [...]}, which `finetune instruct` can read.

        Raises:
            DataError: there is such a file.
        """
        try:
            with Path(file).open("x", encoding="utf-8") as saved:
                saved.write(json.dumps({"messages": self.messages}, ensure_ascii=False) + "\n")
        except FileExistsError:
            raise DataError(f"{file}: exists already and is never overwritten; choose another name") from None

    def load(self, file: str) -> None:
        """Go on with a saved conversation.

        Raises:
            DataError: the file holds none.
        """
        try:
            messages = json.loads(Path(file).read_text(encoding="utf-8"))["messages"]
            messages = [{"role": str(m["role"]), "content": str(m["content"])} for m in messages]
            check_roles([message["role"] for message in messages] or ["none"])
            json.dumps(messages, ensure_ascii=False).encode()  # no text has half a character
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise DataError(f"{file}: no saved conversation ({error})") from None
        self.messages = messages


def _stop_ids(path: Path, loaded: LoadedModel) -> tuple[int, ...]:
    """The ids that end an answer.

    Raises:
        ModelError: the model has no chat template.
    """
    if loaded.tokenizer.chat_template is None:
        raise ModelError(
            f"{path}: no chat template, so it knows no turns; teach it with fledge finetune instruct {path}, or let it "
            f"go on with a text: fledge pretrain sample {path}"
        )
    ends = vocabulary.stop_ids(loaded.tokenizer)
    if ends[0] not in declared_ids(path):
        console.warn(f"{path}: was never taught to end an answer; is it a base model? fledge finetune instruct")
    return tuple(dict.fromkeys([*ends, *end_ids(path, loaded.tokenizer, of_turn=True)]))


def _loop(talk: Talk) -> None:
    """Read turns and commands until the end of input."""
    with contextlib.suppress(ImportError):  # not on Windows
        import readline  # noqa: F401, gives input() its editing and history
    if sys.stdin.isatty():
        console.note(f"{talk.path}; /help shows the commands")
    while (text := _read_turn()) is not None:
        text = text.encode("utf-8", "replace").decode()  # a pipe may have held other bytes
        try:
            if text.startswith("/"):
                if not _obey(talk, text):
                    return
            elif text.strip():
                with contextlib.suppress(KeyboardInterrupt):
                    talk.say(text)
        except FledgeError as error:
            console.note(f"error: {error}")


def _read_turn() -> str | None:
    """What the user says, of one line or several; None at the end of input."""
    lines: list[str] = []
    while True:
        try:
            line = input(("> " if not lines else ". ") if sys.stdin.isatty() else "")
        except EOFError:
            if sys.stdin.isatty():
                console.write("\n")  # behind the prompt
            return "\n".join(lines) if lines else None
        except KeyboardInterrupt:
            console.note("\n(/quit leaves)")
            lines = []
            continue
        lines.append(line)
        text = "\n".join(lines)
        if text.startswith(FENCE):
            if len(text) >= 2 * len(FENCE) and text.rstrip().endswith(FENCE):
                return text.rstrip()[len(FENCE) : -len(FENCE)].strip("\n")
        elif line.endswith("\\"):
            lines[-1] = line[:-1]
        else:
            return text


def _obey(talk: Talk, text: str) -> bool:
    """Carry out a command; False to leave."""
    command, _, rest = text.partition(" ")
    rest = rest.strip()
    if command in ("/quit", "/exit"):
        return False
    if command == "/reset":
        talk.set_system(talk.messages[0]["content"] if talk.messages and talk.messages[0]["role"] == "system" else "")
        console.note("(forgotten)")
    elif command == "/system":
        talk.set_system(rest)
        console.note("(a new conversation)")
    elif command == "/temperature":
        try:
            talk.sampling = dataclasses.replace(talk.sampling, temperature=float(rest))
        except ValueError:
            raise DataError(f"/temperature {rest}: expected a number, such as 0.7") from None
    elif command in ("/save", "/load") and rest:
        try:
            (talk.save if command == "/save" else talk.load)(rest)
        except OSError as error:
            raise DataError(f"{rest}: can't be written ({error.strerror})") from None
        console.note(f"({len(talk.messages)} messages)")
    else:
        console.note(HELP)
    return True
