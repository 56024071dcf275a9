"""The terms of a training by name, as they are written in YAML."""

from dataclasses import dataclass, fields
from typing import Any

from idgen.errors import ConfigError
from idgen.objectives.attention import AttentionConfig, attention
from idgen.objectives.disentangle import BackgroundConfig, PreservationConfig, background, preservation
from idgen.objectives.editing import EditingConfig, editing
from idgen.objectives.image_branch import ContrastiveConfig, TextOnlyConfig, contrastive, text_only
from idgen.objectives.reward import (
    AestheticRewardConfig,
    IdentityRewardConfig,
    aesthetic_reward,
    identity_reward,
)
from idgen.objectives.terms import (
    CosineConfig,
    DenoisingConfig,
    PriorConfig,
    Term,
    TermConfig,
    TripletConfig,
    cosine,
    denoising,
    prior,
    triplet,
)


@dataclass(frozen=True, kw_only=True)
class TermsConfig:
    """Which terms a training has; those that are not named are not there."""

    denoising: DenoisingConfig | None = None
    prior: PriorConfig | None = None
    cosine: CosineConfig | None = None
    triplet: TripletConfig | None = None
    background: BackgroundConfig | None = None
    preservation: PreservationConfig | None = None
    text_only: TextOnlyConfig | None = None
    contrastive: ContrastiveConfig | None = None
    attention: AttentionConfig | None = None
    editing: EditingConfig | None = None
    identity_reward: IdentityRewardConfig | None = None
    aesthetic_reward: AestheticRewardConfig | None = None

    def __post_init__(self) -> None:
        if not self.active():
            raise ConfigError(f"no term has a weight above 0 (terms: {', '.join(_FACTORIES)})")

    def active(self) -> dict[str, TermConfig]:
        """The terms that count, by name."""
        named = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: config for name, config in named.items() if config is not None and config.weight > 0}

    @property
    def sees_faces(self) -> bool:
        """Whether a term looks at the face in a picture that the model makes."""
        return self.generates or bool({"cosine", "triplet"} & self.active().keys())

    @property
    def generates(self) -> bool:
        """Whether a term judges pictures that are made from pure noise."""
        return bool({"identity_reward", "aesthetic_reward"} & self.active().keys())

    @property
    def has_branch(self) -> bool:
        """Whether a term trains an image branch beside the text."""
        return bool({"text_only", "contrastive"} & self.active().keys())

    @property
    def asks_again(self) -> bool:
        """Whether a term compares the model with itself under another identity or none: adapters only."""
        return bool({"background", "preservation", "editing"} & self.active().keys())


_FACTORIES: dict[str, Any] = {
    "denoising": denoising, "prior": prior, "cosine": cosine, "triplet": triplet, "background": background,
    "preservation": preservation, "text_only": text_only, "contrastive": contrastive,
    "attention": attention, "editing": editing,
    "identity_reward": identity_reward, "aesthetic_reward": aesthetic_reward,
}  # fmt: skip


def build_terms(config: TermsConfig) -> dict[str, tuple[TermConfig, Term]]:
    """The terms that count, with their settings."""
    return {name: (settings, _FACTORIES[name](settings)) for name, settings in config.active().items()}
