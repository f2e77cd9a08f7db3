"""Settings of `fledge eval` and of its tasks and suites; values and their reasons are in configs/eval/ and beside."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from fledge.config import CommandConfig, Config, Device, ModelName, Tokens

Limit = Annotated[
    int | None, Field(ge=1, description="only the first items of each set", json_schema_extra={"unit": "items"})
]


class TaskConfig(Config):
    """One task: `eval/tasks/<name>.yaml`, or a user's own file given as `--task my.yaml`."""

    kind: str = Field(description="the module eval/tasks/<kind>.py")
    data: list[str] = Field(
        [], description="files, folders, globs or village:WORLD/KIND, as typed or below a suite's --data"
    )
    fields: dict[str, str] = Field({}, description="the kind's name of a field: its name in the rows")
    delimiter: str = Field(" ", description="between context and continuation, as lm-evaluation-harness has")
    prompt: str | None = Field(None, description="made of a row's fields in braces, in place of the kind's own prompt")
    chat: bool = Field(False, description="the prompt is a user's message, in the model's chat template")
    must_stop: bool = Field(
        False, description="checked answers that do not stop by themselves are wrong, whatever they say"
    )
    max_new_tokens: Tokens = Field(64, ge=1, description="of a generated answer")
    stop: list[str] = Field([], description="strings that end a generated answer")
    metrics: list[str] = Field(
        [], description="of generated answers, besides the kind's own: names, files or hub names"
    )
    check: str = Field("", description="kind checked: a file of eval/checks/, or my_check.py")
    against: str = Field("", description="kind win_rate: the other model; none: the answers in the data")
    reward_model: str = Field("", description="kind win_rate: the reward model that judges")
    stride: Tokens = Field(0, ge=0, description="between windows of a long text; 0: a context")


class SuiteConfig(Config):
    """A suite of tasks, `eval/suites/<name>.yaml` or a user's own file."""

    tasks: list[str] = Field(min_length=1, description="names of tasks")
    limit: Limit = None


class MeasureConfig(CommandConfig):
    """What every command that measures has: tasks, their data, and how the model runs."""

    makes_run: ClassVar[bool] = False
    idle = {("task", True): ("suite",)}

    task: list[str] = Field(
        [], description="in place of the suite: a task's name, a YAML file of your own or lm-eval:NAME; repeatable"
    )
    data: list[str] = Field(
        [], description="the task's data; with --suite the folder in which its tasks find theirs; repeatable"
    )
    limit: Limit = None
    batch_size: int = Field(
        0, ge=0, description="sequences at once; 0: as many as fill the processor", json_schema_extra={"unit": "rows"}
    )
    device: Device = "auto"
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="of the forward pass; in bfloat16 close verdicts are scored again in float32"
    )
    fresh: bool = Field(False, description="measure again what was measured before")


class RunConfig(MeasureConfig):
    """Measure one model.

    Each number comes with a 95 % interval, the number of items and a baseline. Results are kept in the model's own
    run, RUN/eval/, and measured once.
    """

    stage: ClassVar[str] = "eval"
    command: ClassVar[str] = "run"

    model: ModelName
    suite: str = Field("quick", description="quick, base, chat, full, or a YAML file of your own")
    out: str | None = Field(None, description="folder for the results, in place of RUN/eval")


class CompareConfig(MeasureConfig):
    """Compare models on the same items: paired differences to the first model, and what has become worse.

    Reads what `fledge eval run` has measured, and measures what is missing. A run of several seeds (--seeds) is one
    model; the spread over its seeds is shown beside the noise of the items.
    """

    stage: ClassVar[str] = "eval"
    command: ClassVar[str] = "compare"

    models: list[str] = Field(
        min_length=1,
        description="runs, model folders or hub names; the others are compared with the first",
        json_schema_extra={"argument": True},
    )
    suite: str = Field(
        "", description="quick, base, chat, full, or a YAML file; none: what was measured before, else quick"
    )
    out: str | None = Field(None, description="Markdown file for the table")


class OverlapConfig(CommandConfig):
    """Look for every item of some tasks in training text, by stretches of n words.

    With --model the scores of the items that stand there, at least in part, are told apart from those of the others.
    """

    stage: ClassVar[str] = "eval"
    command: ClassVar[str] = "overlap"
    makes_run: ClassVar[bool] = False

    data: list[str] = Field(
        min_length=1, description="training text: token shards, text files, or files of rows with texts; repeatable"
    )
    task: list[str] = Field(min_length=1, description="a task's name, or a YAML file of your own; repeatable")
    task_data: list[str] = Field(
        [], description="the tasks' data: the folder in which they find theirs, or one task's files; repeatable"
    )
    model: str | None = Field(None, description="run or model folder whose scores are split")
    n: int = Field(
        13,
        ge=2,
        description="words of a stretch; shorter items are looked for as a whole",
        json_schema_extra={"unit": "words"},
    )
    limit: Limit = None


class SelfcheckConfig(CommandConfig):
    """Check that a model and its tokenizer keep their promises, on your own data.

    Batches, padding, caching, packing, accumulation, LoRA, template, end of turn, bytes, saving: each with the measured
    difference, and the likely cause where it is too large. Exit code 3 if one fails.
    """

    stage: ClassVar[str] = "eval"
    command: ClassVar[str] = "selfcheck"
    makes_run: ClassVar[bool] = False

    model: ModelName
    data: list[str] = Field(
        ["village:hamlet/instructions"], description="texts or conversations to check with; repeatable"
    )
    rows: int = Field(8, ge=2, description="of the data that are used", json_schema_extra={"unit": "rows"})
    max_tokens: Tokens = Field(64, ge=8, description="of each text that are read")


class ReportConfig(CommandConfig):
    """Show a model's whole life on one page that opens from disk, in any browser.

    Lineage, samples of every age under a slider, numbers with intervals, curves, cost and commands. Parents are found
    from the runs that are given. A report that is there already is written again.
    """

    stage: ClassVar[str] = "eval"
    command: ClassVar[str] = "report"
    makes_run: ClassVar[bool] = False

    runs: list[str] = Field(
        min_length=1,
        description="runs, or folders of runs (of a demo, of several seeds)",
        json_schema_extra={"argument": True},
    )
    out: str = Field("report.html", description="the page to write")
