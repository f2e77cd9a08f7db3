"""`fledge finetune instruct`: any model to one that answers."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from finetune import published, supervised, vocabulary
from finetune.config import InstructConfig
from finetune.supervised import Example, Examples
from fledge import console, plots, trainer_bridge
from fledge.data import conversations
from fledge.data import sources as src
from fledge.data.conversations import Conversations
from fledge.data.messages import Message
from fledge.errors import ConfigError
from fledge.metrics_log import read_metrics
from fledge.models import adapters, decoding, generation
from fledge.models import folder as model_folder
from fledge.models.generation import Sampling
from fledge.rundir import RunFolder
from fledge.tokens import TextTokenizer
from fledge.trainer_bridge import Job, Progress
from tokenizer.chat import render

HELD_OUT = "held_out.jsonl"  # not trained on, for `fledge eval run --task answers --data ...`
MAX_LENGTH = 1024  # tokens; longer answers are rare, and hub models have contexts that fill any memory
MEASURED_ROWS = 8  # in a forward pass without gradients


@dataclass
class Lesson:
    """The parent model and what it is taught."""

    path: Path
    model: Any  # transformers' class, perhaps with adapters
    tokenizer: TextTokenizer
    data: Conversations
    counts: dict[str, int]  # of the conversations to train on, for the result
    rows: list[Example]  # packed
    held_out: list[Example]  # packed
    asked: list[list[Message]]  # held out, and short enough to leave room for an answer
    sampled: list[list[Message]]  # asked at each check


def run(settings: InstructConfig, folder: RunFolder) -> dict[str, Any]:
    """Teach a model in a run folder; see InstructConfig."""
    lesson = _prepare(settings)
    settings = trainer_bridge.resolved(settings, len(lesson.rows))
    folder.freeze(settings)
    folder.track_with(settings.run.trackers)
    read = {"sources": src.describe(lesson.data.sources), "conversations": len(lesson.data.train)}
    published.record(folder, settings.run, lesson.path, lesson.tokenizer, lesson.model, data=read)
    published.write_rows(folder, HELD_OUT, ({"messages": c.messages} for c in lesson.data.held_out))
    published.announce(lesson.path, lesson.model, settings, "rows")

    def check(model: nn.Module) -> dict[str, float]:
        return {"validation_loss": supervised.mean_loss(model, lesson.held_out, MEASURED_ROWS)}

    job = Job(
        model=lesson.model.to(settings.run.device),
        examples=lesson.rows,
        lengths=None if settings.pack else [len(row["input_ids"]) for row in lesson.rows],
        collate=supervised.collate,
        loss=supervised.loss,
        num_targets=supervised.num_targets,
        check=check,
        sample=lambda model, step: _samples(model, settings, lesson),
        tokenizer=lesson.tokenizer,
    )
    before = published.before(folder, lambda: check(job.model))["validation_loss"]
    progress = trainer_bridge.train(job, settings, folder, "trl-sft")
    return _finish(settings, folder, lesson, progress, before)


def _prepare(settings: InstructConfig) -> Lesson:
    """The model with room for the tokens of a conversation, and the conversations as rows of ids."""
    path = model_folder.find_model(settings.model)
    parents_own = TextTokenizer.from_folder(path)
    tokenizer = vocabulary.for_chat(parents_own)
    data = conversations.read(settings.data, settings.validation.share, settings.format, settings.max_bad_share)
    model = model_folder.load_by_transformers(path)
    decoding.forward_arguments(model)  # a model that can't be sampled from is refused before anything is made
    context = generation.context_of(model)
    longest = settings.max_length or min(context, MAX_LENGTH)
    if longest > context:
        raise ConfigError(f"--max-length {longest}: the model's context is {context} tokens; give at most that")
    held_out = data.held_out[: settings.validation.examples]
    train, measured = (supervised.tokenise(tokenizer, part, longest) for part in (data.train, held_out))
    vocabulary.make_room(model, vocabulary.new_ids(parents_own, tokenizer), tokenizer.vocab_size)
    rows = supervised.pack(train.examples, settings.pack)
    if settings.pack:
        supervised.check_packing(model, max(rows, key=lambda row: len(row["seq_lengths"])))
    if settings.lora.rank:
        model = adapters.add_lora(
            model, **settings.lora.model_dump(), seed=settings.run.seed, token_ids=vocabulary.template_ids(tokenizer)
        )

    def with_room(prompts: list[list[Message]]) -> list[list[Message]]:
        return [p for p in prompts if len(_prompt_ids(tokenizer, p)) <= context // 2]

    asked = with_room([c.prompt for c in held_out])
    fixed = with_room([[{"role": "user", "content": text}] for text in settings.answers.prompts])
    counts = _announce(train, len(rows))
    measured_rows = supervised.pack(measured.examples, settings.pack)
    return Lesson(path, model, tokenizer, data, counts, rows, measured_rows, asked, fixed + asked[:2])


def _announce(train: Examples, num_rows: int) -> dict[str, int]:
    tokens = sum(len(one["labels"]) for one in train.examples)
    learned = sum(int((one["labels"] >= 0).sum()) for one in train.examples)
    console.note(
        f"{len(train.examples)} conversations in {num_rows} rows, {console.format_count(tokens)} tokens, "
        f"{learned / tokens:.0%} of them learned; {train.num_cut} cut behind the last answer "
        f"within the length limit, {train.num_dropped} left out because no answer fits"
    )
    return {"conversations": len(train.examples), "cut": train.num_cut, "left_out": train.num_dropped}


def _samples(model: nn.Module, settings: InstructConfig, lesson: Lesson) -> list[dict[str, Any]]:
    """Greedy answers to the fixed prompts and to the first held-out ones."""
    room = _room(model, lesson.tokenizer, lesson.sampled, settings.answers.max_new_tokens)
    answers = _answers(model, lesson.tokenizer, lesson.sampled, room)
    return [
        {"prompt": messages[-1]["content"], **generation.sample_of(lesson.tokenizer, answer), "finish": answer.finish}
        for messages, answer in zip(lesson.sampled, answers, strict=True)
    ]


def _prompt_ids(tokenizer: TextTokenizer, messages: list[Message]) -> list[int]:
    return render(tokenizer, messages, add_generation_prompt=True).ids


def _answers(
    model: Any, tokenizer: TextTokenizer, asked: list[list[Message]], max_new_tokens: int
) -> list[generation.Completion]:
    if not asked:
        return []
    prompts = [_prompt_ids(tokenizer, messages) for messages in asked]
    sampling = Sampling(max_new_tokens=max_new_tokens, temperature=0, stop_ids=vocabulary.stop_ids(tokenizer))
    return generation.generate(model, prompts, sampling, tokenizer.token_bytes())


def _room(model: Any, tokenizer: TextTokenizer, asked: list[list[Message]], max_new_tokens: int) -> int:
    """The tokens that answers may have: as many as wanted, or as the longest prompt leaves."""
    longest = max((len(_prompt_ids(tokenizer, messages)) for messages in asked), default=0)
    return min(max_new_tokens, generation.context_of(model) - longest)


def _finish(
    settings: InstructConfig, folder: RunFolder, lesson: Lesson, progress: Progress, before: float
) -> dict[str, Any]:
    """Publish the model, see whether its answers stop, write curve, card and summary.

    Returns:
        the `--json` object of `finetune instruct`.
    """
    result: dict[str, Any] = {
        "steps": progress.step,
        "best_step": progress.best_step,
        "validation_loss_before": before,
        "held_out": len(lesson.data.held_out),
        "duplicates": lesson.data.duplicates,
        "tokens": progress.tokens,
        "loop_s": round(progress.elapsed_s, 3),
    } | lesson.counts
    with folder.publish("model") as partial:
        proving = [row["input_ids"] for row in lesson.held_out[:4]]
        stops = vocabulary.stop_ids(lesson.tokenizer)
        saved, proof = published.write(partial, lesson.model, lesson.tokenizer, stops, proving)
        result |= proof
        # In float32, as the parent was measured; the trainer's checks are in its own number format.
        measured = model_folder.load_by_transformers(partial).to(settings.run.device)
        result["validation_loss"] = supervised.mean_loss(measured, lesson.held_out, MEASURED_ROWS)
        del measured  # its weights are mapped from the folder, which Windows then would not rename
        asked = lesson.asked[: settings.answers.at_end]
        result["max_new_tokens"] = _room(saved, lesson.tokenizer, asked, settings.answers.max_new_tokens)
        answers = _answers(saved, lesson.tokenizer, asked, result["max_new_tokens"])
        result["stopped_share"] = sum(a.finish == "stop" for a in answers) / max(1, len(answers))
        result["answers"] = len(answers)
        lines = _lines(result)
        published.card(folder, partial, lines)
    plots.loss_curve(read_metrics(folder.path), folder.path / "loss.png", {"before": before}, "loss")
    folder.write_summary(_summary(folder, result, lines))
    return result


def _lines(result: dict[str, Any]) -> list[str]:
    """The results in sentences."""
    lines = [
        f"held-out loss on the answers: {result['validation_loss']:.4f} nats/token at step {result['best_step']}, "
        f"{result['validation_loss_before']:.4f} before",
        f"{result['stopped_share']:.0%} of {result['answers']} held-out answers stop by themselves within "
        f"{result['max_new_tokens']} tokens",
        f"{result['conversations']} conversations, {console.format_count(result['tokens'])} tokens read in "
        f"{result['steps']} steps",
    ]
    if result["validation_loss"] >= result["validation_loss_before"]:
        lines.append("the held-out loss did not fall: this model is no better at answering than its parent")
    return lines + published.sentences(result)


def _summary(folder: RunFolder, result: dict[str, Any], lines: list[str]) -> str:
    text = [f"# {folder.path}", "", *(f"- {line}" for line in lines)]
    last = [sample for sample in folder.samples() if sample["step"] == result["best_step"]]
    if last:
        text += ["", "## Answers", ""]
        text += [f"> **{s['prompt']}**\n\n{s['text']}".replace("\n", "\n> ") + "\n" for s in last]
    text += ["", f"Talk to it: fledge chat {folder.path}; curve: {folder.path}/loss.png"]
    return "\n".join(text)
