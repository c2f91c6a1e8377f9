"""Every type of model that transformers has for text: what the check of its config accepts, the engine can run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from huggingface_hub.errors import StrictDataclassError
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from kvbench.engine.survey import survey
from kvbench.models import layers
from kvbench.models.shape import attention_sizes
from tests.engine.test_architectures import OLD_VERSION
from tests.helpers.tiny_configs import tiny_config

# before 5.5 they get no keywords, build masks of their own, or cannot be made of a tiny config
LATE_IN_OLD_VERSIONS = ("Emu3", "Fuyu", "GPT2", "Llama4", "OPT", "Persimmon", "Phi4Multimodal")


def accepted() -> Iterator[type[PreTrainedConfig]]:
    """Yield the config classes whose default is accepted."""
    for config_class in dict.fromkeys(MODEL_FOR_CAUSAL_LM_MAPPING.keys()):
        try:
            layers.check(config_class())
        except (
            ValueError,
            TypeError,
            StrictDataclassError,
        ):  # transformers refuses defaults of its own, as of Musicgen
            continue
        if not (OLD_VERSION and config_class.__name__.removesuffix("Config") in LATE_IN_OLD_VERSIONS):
            yield config_class


def surveyed(config: PreTrainedConfig) -> str:
    """Return how the survey of a model differs from what its config says: the reason for a refusal, or sizes."""
    try:
        plan = survey(AutoModelForCausalLM.from_config(config).eval())
    except ValueError as error:
        return str(error)
    local, _ = layers.local_layers(config)
    promised = (local, *attention_sizes(config), layers.window_limit(config))
    seen = (len(plan.local), plan.heads, plan.kv_heads, plan.head_dim, plan.limit)
    return "" if promised == seen else f"the config says {promised}, the model has {seen}"


def test_what_a_config_promises_is_true_of_its_model() -> None:
    """A model is refused before 100 GB are loaded, and budgets in bytes count the heads that it has."""
    classes = list(accepted())
    wrong = {config_class.__name__: surveyed(tiny_config(config_class)) for config_class in classes}
    late = {name: reason for name, reason in wrong.items() if reason}
    assert late == {} and len(classes) > 50


@pytest.mark.parametrize("model_type", [name for name in layers.OTHER_WAYS if name in CONFIG_MAPPING])
def test_types_that_are_refused_by_name_cannot_run(model_type: str) -> None:
    config = tiny_config(CONFIG_MAPPING[model_type])
    with pytest.raises(ValueError, match=rf"^{model_type} is not supported: .*; choose another model$"):
        layers.check(config)
    assert surveyed(config).startswith("model: ")


@pytest.mark.parametrize("model_type", [name for name in ("axk2", "doge", "git", "hy_v4") if name in CONFIG_MAPPING])
def test_a_model_that_reads_its_mask_is_refused_with_that_reason(model_type: str) -> None:
    reason = surveyed(tiny_config(CONFIG_MAPPING[model_type]))
    assert "attention mask" in reason and "_Rule" not in reason


def test_a_cache_that_drops_tokens_is_a_limit() -> None:
    """Moshi's mask has no window, but its cache has one: beyond it, its answers depend on how it is called."""
    model = AutoModelForCausalLM.from_config(tiny_config(CONFIG_MAPPING["moshi"])).eval()
    if OLD_VERSION:  # Moshi does not use the attention interface there
        return
    plan = survey(model)
    assert (plan.limit, plan.reason) == (8, "its own cache keeps 8 tokens only")
