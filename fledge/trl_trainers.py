"""TRL's trainers under the run contract: what each of them needs besides. Only `fledge.trainer_bridge` imports this."""

import warnings
from collections import defaultdict
from typing import Any

import datasets
import torch
import transformers
import trl
from torch import Tensor
from torch.utils.data import DataLoader

from fledge.data.batch_order import BatchOrder
from fledge.trainer_bridge import Contract, Job

NAMES = {"trl-sft": "SFT", "trl-reward": "Reward", "trl-dpo": "DPO", "trl-grpo": "GRPO"}
REFERENCE = "ref"  # TRL's name for a second adapter


def make(job: Job, arguments: dict[str, Any], parts: dict[str, Any], by: str) -> Any:
    """A trainer for a job.

    Args:
        arguments: what all trainers' configs have in common.
        parts: what Contract wants.
        by: a key of NAMES.
    """
    assert job.tokenizer is not None
    name = NAMES[by]
    inner, roles = job.tokenizer.inner, job.tokenizer.roles
    parts["processing_class"] = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, **roles)
    # The contract's loader gives the batches; TRL only sees by a row that it has nothing to prepare.
    columns = ("input_ids", "labels", "chosen_ids", "rejected_ids", "prompt")
    parts["train_dataset"] = datasets.Dataset.from_list([{column: [0] for column in columns}])
    kind = getattr(trl, f"{name}Config")
    # The newer name, and the one that transformers 5.17 has.
    recompute = ("activation_checkpointing", "gradient_checkpointing")
    arguments[next(known for known in recompute if known in kind.__dataclass_fields__)] = False
    if by == "trl-grpo":
        parts |= {"reward_funcs": _judge_of(job), "rollout_func": _writer_of(job)}
    else:
        arguments["max_length"] = None
        parts["data_collator"] = job.collate
    if by == "trl-dpo":
        arguments["precompute_ref_log_probs"] = True  # the examples bring them
    args = kind(**arguments, **job.arguments)
    extras = {"trl-dpo": (_Dpo,), "trl-grpo": (_Grpo,)}.get(by, (Contract,))
    under_contract = type(f"_{name}", (_Prepared, *extras, getattr(trl, f"{name}Trainer")), {})
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "You are using 'rollout_func'", UserWarning)  # an experiment of TRL's
        trainer = under_contract(args=args, **parts)
    if getattr(args, "disable_dropout", False):  # TRL knows of modules alone
        for module in job.model.modules():
            if isinstance(getattr(module, "attention_dropout", None), float):
                module.attention_dropout = 0.0  # type: ignore[assignment]
    # Adapters that begin at nothing have the bare model as their reference; TRL makes a copy of them for it.
    if REFERENCE in getattr(job.model, "peft_config", {}):
        job.model.delete_adapter(REFERENCE)  # type: ignore[operator]
    return trainer


class _Prepared(Contract):
    """Takes rows as they are."""

    def _prepare_dataset(self, dataset: Any, *others: Any, **more: Any) -> Any:
        return dataset

    def _precompute_ref_logps(self, dataset: Any, *others: Any) -> Any:
        return dataset


class _Dpo(Contract):
    """DPO, which measures held-out pairs by its own loss."""

    _metrics: dict[str, dict[str, list[float]]]

    def measured(self) -> dict[str, float]:
        """Loss, accuracy and margin of the implicit rewards, over all held-out pairs."""
        job, size = self.job, self.args.per_device_train_batch_size
        told = {"validation_accuracy": "rewards/accuracies", "validation_margin": "rewards/margins"}
        totals: dict[str, float] = defaultdict(float)
        for start in range(0, len(job.held_out), size):
            batch = self._prepare_inputs(job.collate(list(job.held_out[start : start + size])))
            del batch["num_tokens"]
            with self.compute_loss_context_manager():
                loss = super(Contract, self).compute_loss(self.model, batch)
            found = {"validation_loss": float(loss)} | {
                name: self._metrics["eval"][theirs][-1] for name, theirs in told.items()
            }
            self._metrics["eval"].clear()
            for name, value in found.items():
                totals[name] += value * job.num_targets(batch) / len(job.held_out)
        return dict(totals)

    def figures(self) -> dict[str, float]:
        """Nothing: the loss says it all; TRL's own lists must not grow."""
        self._metrics["train"].clear()
        return {}


class _Grpo(Contract):
    """GRPO, whose batches are prompts: some steps share the answers to them."""

    _metrics: dict[str, dict[str, list[float]]]

    def get_train_dataloader(self) -> Any:
        """For each microbatch the prompts of its generation, each as often as it is answered."""
        args: Any = self.args
        per_generation = args.steps_per_generation * args.num_iterations  # microbatches
        num_prompts = args.generation_batch_size // args.num_generations
        num_microbatches = args.max_steps * args.gradient_accumulation_steps
        num_generations = -(-num_microbatches // per_generation)
        run = self.settings.run
        order = BatchOrder(len(self.job.examples), num_prompts, num_prompts, num_generations, run.seed)
        batches = [
            [number for number in batch for _ in range(args.num_generations)]
            for batch in order
            for _ in range(per_generation)
        ]
        loader: Any = DataLoader(
            self.job.examples,  # type: ignore[arg-type]
            batch_sampler=batches[:num_microbatches],
            collate_fn=self.job.collate,
            generator=torch.Generator(),
        )
        return self.accelerator.prepare(loader)

    def _get_num_items_in_batch(self, batch_samples: Any, device: torch.device) -> Tensor:
        return torch.tensor(1, device=device)  # TRL divides for itself

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        with warnings.catch_warnings():  # TRL asks transformers by a name that is to be another
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
            return super()._prepare_inputs(generation_batch)

    def figures(self) -> dict[str, float]:
        """Rewards, KL and what the answers are like; means since the last line."""
        found = {name: sum(v) / len(v) for name, v in self._metrics["train"].items() if v}
        self._metrics["train"].clear()
        length = found.get("completions/mean_length")
        told = {
            "reward": found.get("reward"),
            "entropy": found.get("entropy"),
            "clipped_share": found.get("clip_ratio/region_mean"),
            "answer_tokens": length,
            "kl": found["kl"] * length if length and "kl" in found else None,  # TRL's is a mean over tokens
            "stopped_share": 1 - found["completions/clipped_ratio"] if length else None,
            "idle_share": found.get("frac_reward_zero_std"),
        }
        return {name: value for name, value in told.items() if value is not None}


def _writer_of(job: Job) -> Any:
    """The job's sampler as TRL wants it.

    A prompt is handed over as its first token, and the rest of it as tokens of the answer that the policy did not
    write: so rows are padded to the right only, and a model that counts positions from the row's start (GPT-2)
    trains on the probabilities that it sampled with.
    """

    def write(prompts: list[list[int]], trainer: Any) -> dict[str, Any]:
        assert job.write is not None
        answers = job.write(trainer.model, prompts, trainer.state.global_step)
        pairs = list(zip(prompts, answers, strict=True))
        trainer.progress.tokens += sum(len(prompt) + len(answer) for prompt, answer in pairs)
        return {
            "prompt_ids": [prompt[:1] for prompt, _ in pairs],
            "completion_ids": [prompt[1:] + answer for prompt, answer in pairs],
            "env_mask": [[0] * (len(prompt) - 1) + [1] * len(answer) for prompt, answer in pairs],
            "logprobs": None,
        }

    return write


def _judge_of(job: Job) -> Any:
    """The job's reward as TRL wants it."""

    def reward(prompts: list[list[int]], completion_ids: list[list[int]], example: list[Any], **others: Any) -> Any:
        assert job.judge is not None
        answers = [ids[len(prompt) - 1 :] for prompt, ids in zip(prompts, completion_ids, strict=True)]
        return job.judge(example, answers)

    return reward
