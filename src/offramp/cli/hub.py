"""Models by name: a folder here, or the hub's."""

from __future__ import annotations

from pathlib import Path

from offramp.errors import RunError

__all__ = ["check_there"]


def check_there(model: str) -> None:
    """Complain now of a model that cannot be had: asked for each file, the hub's library tries again for a minute.

    Raises:
        RunError: it is no folder, and either written like one, or the hub cannot be reached and never gave it.
    """
    if Path(model).is_dir():
        return
    if Path(model).is_absolute() or model.startswith(".") or model.count("/") > 1:  # no name of the hub's
        raise RunError(f"there is no folder {model}: check its name")
    from offramp.training.hub import reaches_hub

    if not _is_cached(model) and not reaches_hub():
        raise RunError(
            f"cannot load a model from {model}: there is no such folder, and the hub cannot be reached: check the "
            "name, or the network"
        )


def _is_cached(model: str) -> bool:
    """Whether the hub gave it earlier."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = [try_to_load_from_cache(model, file) for file in ("config.json", "adapter_config.json")]
    except HFValidationError:  # no name of the hub's either: transformers says so, and asks nobody
        return True
    return any(isinstance(path, str) for path in found)
