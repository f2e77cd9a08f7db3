"""Rewards: what is found under a name, what they give, and what is said when they fail."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from fledge.errors import ConfigError, DataError, ModelError
from fledge.models import classifier
from fledge.tokens import TextTokenizer
from fledge.village import instructions, preferences
from fledge.village.world import make_world
from rlhf import scoring
from rlhf.scoring import Reward, open_reward
from tokenizer import chat

ROW = {"prompt": "Who keeps a goat?"}


@pytest.fixture(scope="module")
def critic(qwen3: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of two labels with random opinions."""
    path = tmp_path_factory.mktemp("critic") / "model"
    path.mkdir()
    torch.manual_seed(0)
    classifier.from_base(qwen3, ["neg", "pos"]).save(path)
    return path


def plain(function: Any) -> Reward:
    return Reward("mine", None, function)


def test_a_reward_model_scores_the_conversation_by_its_text(judge: Path, tokenizer: TextTokenizer) -> None:
    messages = [{"role": "user", "content": "Hello"}]
    ids = chat.render(tokenizer, [*messages, {"role": "assistant", "content": "Good day"}]).ids
    model = transformers.AutoModelForSequenceClassification.from_pretrained(judge)
    with torch.no_grad():
        expected = float(model(torch.tensor([ids])).logits[0, 0])
    rows: list[dict[str, Any]] = [{"prompt": "Hello"}, {"prompt": messages}]
    reward = open_reward(str(judge.parent))
    assert reward.score(rows, ["Good day", "Good day"]) == pytest.approx([expected, expected], abs=1e-6)
    assert reward.path == judge
    assert reward.identity["model"]["sha256"]


def test_village_is_gold(tmp_path: Path) -> None:
    rows = list(instructions.rows(make_world(), "test", 20))
    answers = [row["messages"][1]["content"] for row in rows]
    assert open_reward("village").score(rows, answers) == preferences.score(rows, answers)


def test_sentiment_is_the_probability_of_the_positive_label(critic: Path) -> None:
    made = classifier.load(critic)
    texts = ["The mill is good", "Nice"]
    expected = [float(p[1]) for p in made.probabilities((text, None) for text in texts)]
    rows: list[dict[str, Any]] = [{"prompt": "The mill"}, {"prompt": [{"role": "user", "content": "x"}]}]
    answers = [" is good", "Nice"]
    assert open_reward(f"sentiment:{critic}").score(rows, answers) == pytest.approx(expected, abs=1e-6)
    negative = open_reward(f"sentiment:{critic}#neg").score(rows, answers)
    assert negative == pytest.approx([1 - value for value in expected], abs=1e-6)


def test_what_is_too_long_loses_its_beginning_and_is_told_once(
    critic: Path, judge: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows: list[dict[str, Any]] = [{"prompt": "The mill stands by the river. " * 30}] * 2
    made = classifier.load(critic)
    ids_2T = [made.tokenizer.encode(row["prompt"] + end) for row, end in zip(rows, ["yes", "no"], strict=True)]
    (begin, *_, last), room = made.encoder.encode([("The", None)])[0], 64 - 2  # the ids of a frame
    logits_2C = made.logits([[begin, *ids[-room:], last] for ids in ids_2T])
    expected = torch.from_numpy(logits_2C).softmax(-1)[:, 1].tolist()
    for source in (f"sentiment:{critic}", str(judge)):
        reward = open_reward(source)
        found = reward.score(rows, ["yes", "no"])
        assert found[0] != found[1]
        if source != str(judge):
            assert found == pytest.approx(expected, abs=1e-6)
        assert f"{source}: 2 of 2 answers with their prompts are longer than its context" in capsys.readouterr().err
        reward.score(rows, ["yes", "no"])
        assert capsys.readouterr().err == ""
        assert reward.num_cut == 4


def test_shipped_checks_read_the_whole_row() -> None:
    assert open_reward("gsm8k").score([{"answer": "#### 7"}] * 2, ["so it is 7.", "8"]) == [1, 0]
    assert open_reward("arithmetic").score([{"continuation": "318"}] * 2, ["318+1", "no 318 7 8"]) == [1, 1]
    row = {"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    assert open_reward("ifeval").score([row, row], ["No", "No, never"]) == [1, 0]
    # 1 - |words - 4| / 4
    assert open_reward("length:4").score([ROW] * 4, ["a b c d", "a b", "", "a " * 9]) == [1, 0.5, 0, 0]


def test_a_users_file_is_a_reward_and_its_content_is_recorded(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def score(rows, answers):\n    return [len(answer) for answer in answers]\n")
    reward = open_reward(str(file))
    assert reward.score([ROW, ROW], ["a", "bcd"]) == [1, 3]
    before = reward.identity["sha256"]
    file.write_text("def score(rows, answers):\n    return [0 for answer in answers]\n")
    assert open_reward(str(file)).identity["sha256"] != before


def test_no_rows_are_no_scores() -> None:
    assert open_reward("gsm8k").score([], []) == []


# --- what is said ---


def raising(rows: Any, answers: Any) -> list[float]:
    if "bad" in answers:
        raise KeyError("truth")
    return [0.0] * len(rows)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (raising, r"--reward mine: KeyError: 'truth'; for the answer 'bad' to 'Who keeps a goat\?'"),
        (lambda rows, answers: [0.0], "--reward mine: 1 scores for 2 answers; it must give one an answer"),
        (lambda rows, answers: [0.0] * 3, "--reward mine: 3 scores for 2 answers; it must give one an answer"),
        (lambda rows, answers: None, r"--reward mine: TypeError: 'NoneType' object is not iterable"),
        (
            lambda rows, answers: [0.0, math.nan],
            r"--reward mine: nan, no finite number, for the answer 'bad' to 'Who keeps",
        ),
        (lambda rows, answers: ["much", 0.0], "--reward mine: 'much', no finite number, for the answer 'good'"),
    ],
    ids=["raises", "count", "more", "none", "nan", "text"],
)
def test_a_function_that_fails_is_named_with_the_row(function: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        plain(function).score([ROW, ROW], ["good", "bad"])


def test_a_row_that_a_check_can_not_read_is_named() -> None:
    with pytest.raises(DataError, match=r"--reward village: no row of the village's instructions: it has no"):
        open_reward("village").score([ROW], ["a"])


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("vilage", "no reward of this name and no folder; did you mean 'village'\\? there are: arithmetic, gsm8k"),
        ("village:hamlet", "village.py takes no 'hamlet'"),
        ("sentiment", "--reward sentiment: needs an argument; sentiment:runs/reviews is a classifier"),
        ("length:many", "--reward length:many: expected a number of words"),
    ],
)
def test_a_reward_that_is_not_there_is_told(source: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_reward(source)


def test_folders_that_are_no_reward_model_are_told(qwen3: Path, critic: Path, judge: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"a reward model, which has no labels to choose from; use fledge rlhf score"):
        open_reward(f"sentiment:{judge}#LABEL_0")
    with pytest.raises(ModelError, match=r"holds a Qwen3ForCausalLM, no reward model; make one with `fledge rlhf"):
        open_reward(str(qwen3))
    with pytest.raises(ModelError, match=rf"a classifier of 2 labels.*use sentiment:{critic}"):
        open_reward(str(critic))
    with pytest.raises(ModelError, match=r"no such folder; did you mean .*/model\?"):
        open_reward(str(critic.parent / "modle"))
    with pytest.raises(DataError, match=rf"no label joy; name one of neg, pos as sentiment:{critic}#neg"):
        open_reward(f"sentiment:{critic}#joy")


def test_a_users_file_that_is_no_reward_is_told(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    with pytest.raises(ConfigError, match=r"mine.py: no such file"):
        open_reward(str(file))
    file.write_text("1 / 0\n")
    with pytest.raises(ConfigError, match=r"mine.py: can't be imported: ZeroDivisionError"):
        open_reward(str(file))
    file.write_text("x = 1\n")
    with pytest.raises(DataError, match=r"mine.py has no function score\(rows, answers\)"):
        open_reward(str(file))


def test_other_tokenizers_are_told(judge: Path, tokenizer: TextTokenizer, capsys: pytest.CaptureFixture[str]) -> None:
    reward = open_reward(str(judge))
    scoring.announce(reward, tokenizer)
    assert "another tokenizer" not in capsys.readouterr().err
    content = json.loads(tokenizer.inner.to_str())
    content["added_tokens"] = content["added_tokens"][:1]
    scoring.announce(reward, TextTokenizer(type(tokenizer.inner).from_str(json.dumps(content))))
    assert "has another tokenizer than the policy: answers are encoded again by their text" in capsys.readouterr().err
