"""bnfold within workflows of Olive: a pass, and the package configuration by which Olive finds it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from olive.hardware.accelerator import AcceleratorSpec
from olive.model import ONNXModelHandler
from olive.model.utils import resolve_onnx_path
from olive.package_config import OlivePackageConfig
from olive.passes import Pass
from olive.passes.onnx.common import get_external_data_config, ir_model_to_olive_model
from olive.passes.pass_config import BasePassConfig, PassConfigParam

from bnfold.api import fuse


class BatchNormFolding(Pass):  # type: ignore[misc]
    """Folds every BatchNorm that can fold exactly, and proves it: the pass ``BatchNormFolding``.

    Its options are ``merge``, ``only``, ``skip`` and ``lower``, those of `bnfold.fuse`, and Olive's on external data.
    """

    @classmethod
    def _default_config(cls, accelerator_spec: AcceleratorSpec) -> dict[str, PassConfigParam]:
        return {
            "merge": PassConfigParam(
                type_=bool, default_value=True, description="let linear branches become one operator"
            ),
            "only": PassConfigParam(
                type_=list[str], default_value=[], description="globs; only nodes of such a name fold"
            ),
            "skip": PassConfigParam(type_=list[str], default_value=[], description="globs; nodes of such a name stay"),
            "lower": PassConfigParam(
                type_=Literal["depthwise", "mul-add"] | None,
                default_value=None,
                description="what those that stay become",
            ),
            **get_external_data_config(),
        }

    def _run_for_config(
        self, model: ONNXModelHandler, config: type[BasePassConfig], output_model_path: str
    ) -> ONNXModelHandler:
        folded = fuse(
            model.load_ir_model(),
            inplace=True,
            merge=config.merge,
            only=config.only,
            skip=config.skip,
            lower=config.lower,
        )
        path = resolve_onnx_path(output_model_path, Path(model.model_path).name)
        return ir_model_to_olive_model(folded, path, config)


def package_config() -> dict[str, Any]:
    """Olive's own package configuration, with the pass: the ``package_config`` of `olive.run`."""
    config: dict[str, Any] = json.loads(Path(OlivePackageConfig.get_default_config_path()).read_text(encoding="utf-8"))
    config["passes"][BatchNormFolding.__name__] = {
        "module_path": f"{__name__}.{BatchNormFolding.__name__}",
        **{f"supported_{what}": ["*"] for what in ("providers", "accelerators", "precisions")},
    }
    return config
