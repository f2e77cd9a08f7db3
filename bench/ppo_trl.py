"""TRL's side of `bench.ppo`: a process with trl 1.12.0 on its path. Shapes: B rows, T tokens."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from finetune.vocabulary import stop_ids
from fledge.models.folder import find_model, read_config
from fledge.tokens import TextTokenizer
from rlhf import prompts, scoring
from rlhf.prompts import Asked


def main(settings: dict[str, Any]) -> None:
    """Train as told; the policy goes to `folder`, and beside it what TRL logged last and how many updates it made."""
    import datasets
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    torch.set_num_threads(1)
    path, out = find_model(settings["model"]), Path(settings["folder"])
    own, tokenizer = TextTokenizer.from_folder(path), AutoTokenizer.from_pretrained(path, padding_side="left")
    stop_id = stop_ids(own)[0] if own.chat_template else own.end_of_text_id
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(stop_id)
    room = read_config(path)["max_position_embeddings"] - settings["options"]["response_length"]
    asked = prompts.read([settings["prompts"]], own, room, held_out_share=0.1).train

    def critic() -> Any:
        return AutoModelForSequenceClassification.from_pretrained(find_model(settings["reward"]), num_labels=1)

    trainer = PPOTrainer(
        PPOConfig(
            output_dir=str(out),
            stop_token="eos",
            temperature=1.0,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            num_sample_generations=0,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            **settings["options"],
        ),
        tokenizer,
        model=AutoModelForCausalLM.from_pretrained(path),
        ref_model=AutoModelForCausalLM.from_pretrained(path),
        reward_model=TextReward(settings["reward"], asked, own, stop_id) if settings["by_text"] else critic(),
        value_model=critic(),
        train_dataset=datasets.Dataset.from_list([{"input_ids": one.ids} for one in asked]),
    )
    trainer.train()
    trainer.save_model(str(out))
    own.save(out)
    last = [line for line in trainer.state.log_history if "objective/kl" in line][-1]
    updates = max(int(state["step"]) for state in trainer.optimizer.state.values())
    (out / "log.json").write_text(json.dumps(last | {"updates": updates}))


class TextReward(torch.nn.Module):
    """One of our rewards where TRL wants a model: each row has its answer's score at every token."""

    base_model_prefix = "body"

    def __init__(self, reward: str, asked: Sequence[Asked], tokenizer: TextTokenizer, stop_id: int) -> None:
        super().__init__()
        self.reward, self.tokenizer, self.stop_id = scoring.open_reward(reward), tokenizer, stop_id
        self.asked = {tuple(one.ids): one.row for one in asked}
        self.body, self.score = self._scored, torch.nn.Identity()

    def _scored(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **_: Any) -> Any:
        rows, answers = [], []
        for ids_T, is_real_T in zip(input_ids, attention_mask.bool(), strict=True):
            ids = ids_T[is_real_T].tolist()
            size = max(n for n in range(len(ids)) if tuple(ids[:n]) in self.asked)
            rows.append(self.asked[tuple(ids[:size])])
            answers.append(self.tokenizer.decode([token for token in ids[size:] if token != self.stop_id]))
        score_B = torch.tensor(self.reward.score(rows, answers))
        return SimpleNamespace(hidden_states=[score_B[:, None, None].expand(*input_ids.shape, 1)])


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
