"""`save_pretrained` and `push_to_hub` as methods of every network."""

from importlib import import_module
from pathlib import Path
from typing import Any

HUB = "metaformer.weights.hub"
"""The module of the functions; networks know no weights, so that it is found when a method is called."""


class HubMixin:
    """Methods that save a network as Hugging Face does; `metaformer.from_pretrained` reads it back."""

    def save_pretrained(self, directory: str | Path) -> None:
        """Write `config.json`, `model.safetensors` and a model card into a directory.

        Raises:
            ConfigError: a mixer without a registered name, or a foreign backbone.
            OutputError: the directory cannot be written to.
        """
        hub: Any = import_module(HUB)
        hub.save_pretrained(self, directory)

    def push_to_hub(
        self, repo_id: str, *, private: bool = False, token: str | None = None, message: str = "Upload model"
    ) -> str:
        """Upload the same to the Hugging Face Hub, and return the address of the commit.

        Raises:
            MissingPackage: huggingface_hub is not installed.
            OutputError: no network, or no right to write there.
        """
        hub: Any = import_module(HUB)
        address: str = hub.push_to_hub(self, repo_id, private=private, token=token, message=message)
        return address
