"""Scores of texts: against transformers, whatever the batch, the padding and the order."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from eval.config import TaskConfig
from eval.items import Item, LogLikelihood
from eval.likelihood import Scorer, halved
from eval.subject import Subject
from eval.tasks import minimal_pairs
from eval.token_tree import Tokens, TokenTree, pack
from fledge.__main__ import run
from fledge.data.rows import Row
from fledge.errors import DataError, ModelError
from fledge.models.loaded import load
from fledge.tokens import TextTokenizer
from fledge.village.spec import rows as village_rows
from tokenizer import chat

CHOICES = [" a dog.", " a dog and a cat.", " two dogs.", " Anna."]


def items_of(*groups: Sequence[tuple[str, str]]) -> list[Item]:
    return [
        Item(Row("here", n, {}), tuple(LogLikelihood(*pair) for pair in group), "here")
        for n, group in enumerate(groups)
    ]


@pytest.fixture(scope="module")
def questions() -> list[Item]:
    """Questions of all lengths with choices that share beginnings, and sentences by themselves."""
    groups = [[(f"Who lives {'next to ' * n}Bram? It is", choice) for choice in CHOICES] for n in range(6)]
    pairs = [[("", " " + row["sentence_good"]), ("", " " + row["sentence_bad"])] for row in pairs_of_village(20)]
    return items_of(*groups, *pairs)


def pairs_of_village(count: int) -> list[dict[str, Any]]:
    return list(village_rows(f"village:hamlet/minimal-pairs#{count}"))


def nats(scorer: Scorer, items: Sequence[Item]) -> list[float]:
    answers, _ = scorer.answer_items(items)
    return [answer.nats for given in answers for answer in given]


def by_transformers(folder: Path, tokenizer: TextTokenizer, items: Sequence[Item]) -> list[tuple[float, bool]]:
    """A plain loop over requests, one at a time."""
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    context, found = model.config.max_position_embeddings, []
    for request in (request for item in items for request in item.requests):
        before = tokenizer.encode(request.context) or [tokenizer.end_of_text_id]
        whole = tokenizer.encode(request.context + request.continuation)
        whole = whole if request.context else before + whole
        ids = torch.tensor([whole[-(context + 1) :]])
        first = max(1, len(before) - (len(whole) - ids.shape[1]))
        with torch.no_grad():
            logprobs = model(ids[:, :-1]).logits[0].float().log_softmax(-1)[first - 1 :]
        targets = ids[0, first:]
        chosen = logprobs.gather(1, targets[:, None])
        found.append((float(chosen.sum()), bool((logprobs.argmax(1) == targets).all())))
    return found


def test_likelihoods_equal_a_plain_loop_by_transformers(
    any_model: Path, tokenizer: TextTokenizer, questions: list[Item]
) -> None:
    scorer = Subject.open(str(any_model), "cpu").scorer
    answers, _ = scorer.answer_items(questions)
    found = [(answer.nats, answer.is_greedy) for given in answers for answer in given]
    expected = by_transformers(any_model, tokenizer, questions)
    assert [value for value, _ in found] == pytest.approx([value for value, _ in expected], abs=1e-4)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]


def test_batch_size_padding_and_order_change_nothing(subject: Subject, questions: list[Item]) -> None:
    whole = nats(subject.scorer, questions)
    single = nats(Scorer(subject.model, subject.tokenizer, batch_size=1), questions)
    turned = nats(Scorer(subject.model, subject.tokenizer, batch_size=7), questions[::-1])
    assert single == pytest.approx(whole, abs=1e-4)
    groups = np.split(np.array(turned), np.cumsum([len(i.requests) for i in questions[::-1]])[:-1])
    assert np.concatenate(groups[::-1]).tolist() == pytest.approx(whole, abs=1e-4)


def test_a_transformers_class_gives_the_same(subject: Subject, model_folder: Path, questions: list[Item]) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(model_folder).eval()
    assert nats(Scorer(theirs, subject.tokenizer), questions) == pytest.approx(
        nats(subject.scorer, questions), abs=1e-4
    )


def test_what_sequences_share_is_read_once() -> None:
    tree = TokenTree.of([Tokens([1, 2, 3, 4], 2), Tokens([1, 2, 3, 5], 2), Tokens([1, 2, 6], 2)])
    assert tree.ids == [1, 2, 3]  # the last id of a sequence is never read
    assert tree.edges == [(1, 3), (2, 4), (2, 5), (1, 6)]
    assert [path.tolist() for path in tree.paths] == [[0, 1], [0, 2], [3]]


def test_a_branch_does_not_see_its_sibling() -> None:
    tree = TokenTree.of([Tokens([1, 2, 3, 9], 1), Tokens([1, 4, 5, 9], 1)])
    assert tree.ids == [1, 2, 3, 4, 5]
    assert tree.depths == [0, 1, 2, 1, 2]
    assert tree.visible().astype(int).tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 0, 0, 1, 0],
        [1, 0, 0, 1, 1],
    ]


@pytest.mark.parametrize(("length", "trees"), [(3000, 1), (5000, 4)])
def test_choices_behind_a_very_long_question_are_read_apart(length: int, trees: int) -> None:
    assert len(pack([Tokens([*range(length), choice], length) for choice in range(4)])) == trees


def test_a_context_too_long_loses_its_beginning_and_is_counted(
    subject: Subject, model_folder: Path, tokenizer: TextTokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    long = items_of([("Anna has a dog." * 30, " Bram has none.")])
    ((answer,),), settings = subject.scorer.answer_items(long)
    assert answer.is_cut
    assert settings["num_cut"] == 1
    assert "1 of 1 texts did not fit into the context of 64 tokens" in capsys.readouterr().err
    ((expected, _),) = by_transformers(model_folder, tokenizer, long)
    assert answer.nats == pytest.approx(expected, abs=1e-4)


def test_a_choice_without_tokens_is_an_error_with_its_place(subject: Subject) -> None:
    with pytest.raises(DataError, match=r"^here:0: '' has no tokens after its context"):
        subject.scorer.answer_items(items_of([("Anna has", "")]))


def test_bfloat16_gives_the_verdicts_of_float32(model_folder: Path, subject: Subject) -> None:
    task = minimal_pairs_items(200)
    low = Subject.open(str(model_folder), "cpu", "bfloat16").scorer
    exact, _ = subject.scorer.answer_items(task, minimal_pairs.margin)
    found, settings = low.answer_items(task, minimal_pairs.margin)
    verdicts = [
        [minimal_pairs.score(item, given) for item, given in zip(task, answers, strict=True)]
        for answers in (exact, found)
    ]
    assert verdicts[0] == verdicts[1]
    assert settings["dtype"] == "bfloat16"
    assert 64 <= settings["again_in_float32"] < 200
    assert found != exact  # most of them really were scored in bfloat16


def minimal_pairs_items(count: int) -> list[Item]:
    task = TaskConfig(kind="minimal_pairs")
    rows = [Row("village", n, values) for n, values in enumerate(pairs_of_village(count))]
    return [minimal_pairs.item(row, task) for row in rows]


class Crowded:
    """A model that has room for few texts at once."""

    def __init__(self, inner: Any, room: int) -> None:
        self.inner, self.room, self.config = inner, room, inner.config

    def run_blocks(self, ids_BT: torch.Tensor, *arguments: Any) -> torch.Tensor:
        if len(ids_BT) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        found: torch.Tensor = self.inner.run_blocks(ids_BT, *arguments)
        return found

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def test_too_little_memory_makes_batches_smaller_and_says_so(
    subject: Subject, questions: list[Item], capsys: pytest.CaptureFixture[str]
) -> None:
    crowded = Scorer(Crowded(subject.model, room=3), subject.tokenizer, batch_size=8)
    assert nats(crowded, questions) == pytest.approx(nats(subject.scorer, questions), abs=1e-4)
    err = capsys.readouterr().err
    assert "not enough memory for 8 texts at once; going on with 4" in err
    assert "going on with 2" in err


def test_a_broken_gpu_is_not_taken_for_a_full_one() -> None:
    with pytest.raises(RuntimeError, match="illegal memory access"):
        halved(8, RuntimeError("CUDA error: an illegal memory access was encountered"))


def test_a_text_that_fits_into_no_memory_is_an_error(subject: Subject, questions: list[Item]) -> None:
    with pytest.raises(ModelError, match="not enough memory for one text"):
        nats(Scorer(Crowded(subject.model, room=0), subject.tokenizer), questions)


@pytest.mark.parametrize("damage", [math.nan, math.inf])
def test_damaged_weights_give_no_likelihoods(
    tmp_path: Path, make_model: Callable[..., Path], tokenizer: TextTokenizer, questions: list[Item], damage: float
) -> None:
    loaded = load(make_model(tmp_path / "model", tokenizer), device="cpu")
    loaded.model.final_norm.weight.data[3] = damage
    with pytest.raises(ModelError, match="gives NaN or infinity: its weights are damaged; copy it"):
        Scorer(loaded.model, tokenizer).answer_items(questions)


def test_spaces_at_the_end_of_a_context_begin_the_answer(subject: Subject) -> None:
    asked = items_of([("Who has a dog? It is ", "Anna.")], [("Who has a dog? It is", " Anna.")])
    (((apart,), (together,)), _) = subject.scorer.answer_items(asked)
    assert (apart.nats, apart.num_tokens) == (together.nats, together.num_tokens)


def test_messages_stand_before_an_answer_as_the_chat_template_has_them(subject: Subject) -> None:
    message = {"role": "user", "content": "Who has a dog?"}
    item = Item(Row("here", 1, {}), (LogLikelihood((message,), "Anna."),), "here")
    ((answer,),), _ = subject.scorer.answer_items([item])
    ids = chat.render(subject.tokenizer, [message], add_generation_prompt=True).ids
    ids += (said := subject.tokenizer.encode("Anna."))
    logprobs = subject_logprobs(subject, ids)
    assert answer.nats == pytest.approx(sum(logprobs[-len(said) :]), abs=1e-4)


def subject_logprobs(subject: Subject, ids: list[int]) -> list[float]:
    logits = load(subject.path, device="cpu").logits(ids[:-1])[0]
    return logits.log_softmax(-1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0].tolist()


def test_a_classifier_is_no_language_model(
    tokenizer: TextTokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "classifier"
    tokenizer.save(folder)
    (folder / "config.json").write_text('{"model_type": "gpt2", "architectures": ["GPT2ForSequenceClassification"]}')
    assert run(["eval", "run", str(folder), "--task", "village_pairs"]) == 1
    assert f"{folder}: holds a GPT2ForSequenceClassification, not a language model" in capsys.readouterr().err
