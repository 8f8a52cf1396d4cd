"""Which vLLM is taken, and what is imported to find out."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from lightkv_gnn.vllm import ARCHITECTURES
from lightkv_gnn.vllm.versions import UnsupportedEngineError, check_call, check_version

# Stands for vLLM: what registering reads of it.
STAND_IN = """
import sys, types
registered = {{}}
def module(name, **values):
    sys.modules[name] = made = types.ModuleType(name)
    vars(made).update(values)
class ModelRegistry:
    @staticmethod
    def register_model(model_arch, model_cls):
        registered[model_arch] = model_cls
    @staticmethod
    def get_supported_archs():
        return {{"LlamaForCausalLM", *registered}}
class VerifyAndUpdateConfig:
    @staticmethod
    def verify_and_update_model_config({checked}): ...
checks = {{}}
class BaseMultiModalProcessor:
    def apply(self, inputs, timing_ctx): ...
    def get_dummy_inputs(self, seq_len, mm_counts, mm_options): ...
    def _get_mm_hashes(self, {argument}): ...
    def _get_cache_missing_processor_kwargs(self, inputs, mm_is_cached): ...
    def _apply_hf_processor_main(self, mm_items, hf_kwargs): ...
    def _get_mm_fields_config(self, hf_inputs, hf_processor_mm_kwargs): ...
    def _get_mm_prompt_updates(self, mm_items, hf_processor_mm_kwargs, out_mm_kwargs): ...
module("vllm", __version__="{version}", ModelRegistry=ModelRegistry)
module("vllm.model_executor")
module("vllm.model_executor.models")
module(
    "vllm.model_executor.models.config",
    {checks}=checks,
    VerifyAndUpdateConfig=VerifyAndUpdateConfig,
)
module("vllm.multimodal")
module("vllm.multimodal.processing", BaseMultiModalProcessor=BaseMultiModalProcessor)
from lightkv_gnn.vllm import register
register()
print((registered, sorted(checks)))
assert "torch_geometric" not in sys.modules and "transformers" not in sys.modules
assert "torch" not in sys.modules and not [name for name in sys.modules if "numba" in name]
"""


CHECKS = "MODELS_CONFIG_MAP"


def registered(
    version: str, argument: str = "inputs", checked: str = "model_config", checks: str = CHECKS
) -> tuple[tuple[dict[str, str], list[str]], str]:
    """What is registered, which architectures have a check of unused settings, and what is said."""
    code = STAND_IN.format(version=version, argument=argument, checked=checked, checks=checks)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return eval(done.stdout), done.stderr


def test_registering_imports_little() -> None:
    (found, checked), said = registered("0.32.0+cpu")
    assert found == {name: f"{module}:{name}" for name, module in ARCHITECTURES.values()}
    assert checked == ["LlamaForCausalLM"]
    assert said == ""


@pytest.mark.parametrize(
    ("given", "looked", "says"),
    [
        (("0.34.1",), True, "vLLM is 0.34.1"),
        (("0.33.0", "items"), True, "takes ['self', 'items']"),
        (("0.33.0", "inputs", "config"), False, "takes ['config']"),
        (("0.33.0", "inputs", "model_config", "OTHER"), False, "no checks by architecture"),
    ],
    ids=["version", "processor", "check", "no check"],
)
def test_another_engine_is_refused_and_runs_nothing(
    given: tuple[str, ...], looked: bool, says: str
) -> None:
    """Nor does it run settings without an architecture, where it can be asked for them."""
    (found, checked), said = registered(*given)
    assert checked == ["LlamaForCausalLM"] * looked
    assert set(found.values()) == {"lightkv_gnn.vllm.refusing:Refused"}
    assert says in said


@pytest.mark.parametrize("version", ["0.31.9", "0.34.0", "1.0", "dev"])
def test_versions_that_are_not_known(version: str) -> None:
    with pytest.raises(UnsupportedEngineError, match=r"expected >=0\.32,<0.34"):
        check_version(version)


@pytest.mark.parametrize("version", ["0.32.0", "0.32.0+cpu", "0.33.1.dev3"])
def test_versions_that_are(version: str) -> None:
    check_version(version)


def test_signatures() -> None:
    def one(self: Any, inputs: Any) -> None: ...

    check_call(one, ("self", "inputs"))
    with pytest.raises(UnsupportedEngineError, match=r"expected .'self', 'items'."):
        check_call(one, ("self", "items"))
