"""The interface of a timed model, whatever engine runs it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from bnfold.runtimes.inputs import Feeds
from bnfold.runtimes.setting import Engine, Setting


class Session(Protocol):
    """A model in memory with its inputs on the device."""

    @property
    def details(self) -> dict[str, Any]:
        """Details of the run for the record: providers, their options, the clock."""
        ...

    def time(self, index: int) -> float:
        """Time one inference on the inputs of this index, in seconds, until its outputs are ready on the device.

        Raises:
            IncomparableError: the runtime cannot run it.
        """
        ...


def open_session(engine: Engine, source: Any, setting: Setting, feeds: Sequence[Feeds]) -> Session:
    """Create a session.

    Args:
        engine: the engine that runs it.
        source: a path; for PyTorch also a module or an exported program.
        setting: provider, level, threads.
        feeds: the inputs, each of which is run by its index. They are on the device before anything is timed.

    Raises:
        MissingExtraError: the runtime or the provider is not installed.
        IncomparableError: the runtime cannot load the model.
    """
    if engine is Engine.ONNXRUNTIME:
        from bnfold.runtimes.timed_onnx_session import OnnxSession

        return OnnxSession(source, setting, feeds)
    from bnfold.runtimes.timed_torch_session import TorchSession

    return TorchSession(source, setting, feeds)


def require(engine: Engine, provider: str) -> None:
    """Check that an engine is installed with a provider.

    Raises:
        MissingExtraError: one of them is not installed.
    """
    if engine is Engine.ONNXRUNTIME:
        from bnfold.runtimes.timed_onnx_session import provider_names

        provider_names(provider)
    else:
        from bnfold.runtimes.timed_torch_session import find_device

        find_device(provider)
