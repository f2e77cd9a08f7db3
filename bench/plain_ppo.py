"""PPO as a plain loop over transformers' own models and `generate`: what ours is timed with.

Shapes: B episodes, T tokens of prompt and answer, N tokens of an answer, V vocabulary.
"""

import copy
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

EPOCHS, MINIBATCHES, CLIP, LAMBDA, KL = 4, 4, 0.2, 0.95, 0.05


class PlainPPO:
    """Policy, reference, critic and reward model; one minibatch a forward pass, all answers of full length."""

    def __init__(self, task: Any, device: str, dtype: str, new_tokens: int, episodes: int) -> None:
        """Load what bench.ppo.random_task has made."""
        from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

        self._policy = AutoModelForCausalLM.from_pretrained(task.model, dtype=torch.float32).to(device).eval()
        self._reference = copy.deepcopy(self._policy)
        scorer = AutoModelForSequenceClassification.from_pretrained(task.reward, dtype=torch.float32)
        self._reward, self._critic = (copy.deepcopy(scorer).to(device).eval() for _ in range(2))
        models = self._policy, self._critic
        self._optimizers = [torch.optim.AdamW(m.parameters(), lr=1e-5, fused=True) for m in models]
        tokenizer = AutoTokenizer.from_pretrained(task.model)
        lines = Path(task.prompts).read_text(encoding="utf-8").splitlines()
        prompts = [tokenizer(json.loads(line)["prompt"])["input_ids"] for line in lines]
        drawn = [prompts[place % len(prompts)] for place in range(episodes)]
        self._prompts_BT = torch.tensor(drawn, device=device)
        self._kind, self._is_half, self._new = device, dtype == "bfloat16", new_tokens
        self._sampler = copy.deepcopy(self._policy).bfloat16() if self._is_half else self._policy

    def step(self) -> None:
        """One step: answers, scores, advantages, and epochs of minibatches."""
        with torch.no_grad(), self._autocast():
            rows_BT = self._write()
            old_BN, reference_BN = (self._logprobs(self._policy, rows_BT), self._logprobs(self._reference, rows_BT))
            value_BN = self._values(rows_BT)
            reward_BN = -KL * (old_BN - reference_BN)
            reward_BN[:, -1] += self._reward(rows_BT).logits[:, 0].float()
            advantage_BN = _advantages(reward_BN, value_BN)
            return_BN = advantage_BN + value_BN
            advantage_BN = (advantage_BN - advantage_BN.mean()) / (advantage_BN.std() + 1e-8)
        for _ in range(EPOCHS):
            order = torch.randperm(len(rows_BT), device=rows_BT.device)
            for some in order.chunk(MINIBATCHES):
                with self._autocast():
                    ratio_BN = (self._logprobs(self._policy, rows_BT[some]) - old_BN[some]).exp()
                    gain_BN = torch.minimum(
                        ratio_BN * advantage_BN[some], ratio_BN.clamp(1 - CLIP, 1 + CLIP) * advantage_BN[some]
                    )
                    missed_BN = self._values(rows_BT[some]) - return_BN[some]
                for loss, model, optimizer in (
                    (-gain_BN.mean(), self._policy, self._optimizers[0]),
                    (0.5 * missed_BN.square().mean(), self._critic, self._optimizers[1]),
                ):
                    loss.backward()
                    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                    optimizer.step()
                    optimizer.zero_grad()

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self._kind, torch.bfloat16, enabled=self._is_half)

    def _write(self) -> Tensor:
        if self._sampler is not self._policy:
            for ours, trained in zip(self._sampler.parameters(), self._policy.parameters(), strict=True):
                ours.copy_(trained)
        with torch.autocast(self._kind, enabled=False):
            rows_BT: Tensor = self._sampler.generate(
                self._prompts_BT,
                attention_mask=torch.ones_like(self._prompts_BT),
                do_sample=True,
                top_k=0,
                max_new_tokens=self._new,
                min_new_tokens=self._new,
                pad_token_id=0,
            )
        return rows_BT

    def _logprobs(self, model: Any, rows_BT: Tensor) -> Tensor:
        logits_BNV = model(rows_BT).logits[:, -self._new - 1 : -1].float()
        ids_BN1 = rows_BT[:, -self._new :, None]
        return logits_BNV.log_softmax(-1).gather(2, ids_BN1)[..., 0]

    def _values(self, rows_BT: Tensor) -> Tensor:
        hidden_BTD = self._critic.base_model(rows_BT).last_hidden_state
        value_BT1: Tensor = self._critic.score(hidden_BTD)
        return value_BT1[:, -self._new - 1 : -1, 0].float()


def _advantages(reward_BN: Tensor, value_BN: Tensor) -> Tensor:
    """Generalised advantages with no discount (Schulman et al. 2016, arXiv 1506.02438)."""
    advantage_BN, carried_B = torch.zeros_like(reward_BN), torch.zeros_like(reward_BN[:, 0])
    for place in reversed(range(reward_BN.shape[1])):
        following_B = value_BN[:, place + 1] if place + 1 < reward_BN.shape[1] else 0.0
        carried_B = reward_BN[:, place] + following_B - value_BN[:, place] + LAMBDA * carried_B
        advantage_BN[:, place] = carried_B
    return advantage_BN
