"""Settings of `fledge rlhf`; values and their reasons are in configs/rlhf/."""

from pydantic import Field

from fledge.config import Config


class SamplingConfig(Config):
    """How the policy writes answers."""

    max_new_tokens: int = Field(64, ge=1, description="an answer", json_schema_extra={"unit": "tokens"})
    temperature: float = Field(1.0, gt=0, description="of sampling and of all log-probabilities")
