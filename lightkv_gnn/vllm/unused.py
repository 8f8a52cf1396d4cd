"""Settings that no compressed architecture reads, which are an error and no silent full run.

vLLM puts what ``--hf-overrides`` has into the model's configuration, whether a model looks at it or
not.  It also has a map of checks by architecture, ``MODELS_CONFIG_MAP``, and runs the one of the
architecture that it took while the configuration is made, before any process is started.  Each
architecture that is not compressed gets a check there; those that had one keep it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from lightkv_gnn.vllm.versions import UnsupportedEngineError, check_call


class UnusedSettings:
    """Mixed into an architecture's check."""

    served: ClassVar[Mapping[str, str]]
    """Of each architecture that is served, its name when compressed."""

    @classmethod
    def verify_and_update_model_config(cls, model_config: Any) -> None:
        """Raises ValueError where settings are given to an architecture that does not compress."""
        config = model_config.hf_config
        if getattr(config, "lightkv", None) is not None:
            raise ValueError(_reason((config.architectures or ["None"])[0], cls.served))
        super().verify_and_update_model_config(model_config)  # type: ignore[misc]


def refuse_unused(served: Mapping[str, str]) -> None:
    """Adds the check to all architectures that vLLM knows, but for the compressed ones.

    Args:
        served: Of each architecture that is served, its name when compressed.

    Raises:
        UnsupportedEngineError: vLLM has no such checks, or they are called otherwise.
    """
    from vllm import ModelRegistry

    try:
        from vllm.model_executor.models.config import MODELS_CONFIG_MAP, VerifyAndUpdateConfig
    except ImportError as error:
        raise UnsupportedEngineError(
            f"vLLM has no checks by architecture ({error}), so that settings without a compressed "
            "one would go unnoticed: expected those of vLLM 0.32"
        ) from error
    check_call(VerifyAndUpdateConfig.verify_and_update_model_config, ("model_config",))
    for name in set(ModelRegistry.get_supported_archs()) - set(served.values()):
        known = MODELS_CONFIG_MAP.get(name, VerifyAndUpdateConfig)
        if not issubclass(known, UnusedSettings):
            both = type(known.__name__, (UnusedSettings, known), {"served": served})
            MODELS_CONFIG_MAP[name] = both


def _reason(name: str, served: Mapping[str, str]) -> str:
    expected = f"a model with one of {', '.join(served)}"
    if name in served:
        expected = f'"architectures": ["{served[name]}"] beside it in --hf-overrides'
    return (
        f'"lightkv" asks for compression, and the architecture {name} does not compress: expected '
        f'{expected}; to run it uncompressed, leave out "lightkv"'
    )
