"""How a model is saved, loaded and shared, for `HierarchicalTransformer`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Self, cast

from . import checkpoint, hub

if TYPE_CHECKING:
    from .model import HierarchicalTransformer


class SharingMixin:
    """Folders of `config.json` and `model.safetensors`, here or on the Hugging Face Hub."""

    def save_pretrained(self, folder: str | os.PathLike[str], *, model_card: str | None = None) -> None:
        """Write `config.json`, `model.safetensors` and the model card `README.md` into `folder`.

        Args:
            folder: it is made where it isn't there.
            model_card: text of the card; by default, one that `make_model_card` writes. A card that stands there is
                replaced only as long as it is, unchanged, one that was made here.

        Raises:
            OSError: if the folder can't be written to; what stood there before still stands.
        """
        checkpoint.save_model(cast("HierarchicalTransformer", self), folder, model_card)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | os.PathLike[str],
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        **overrides: Any,
    ) -> Self:
        """Load what `save_pretrained` wrote, onto the CPU, from a folder or from the Hugging Face Hub.

        Args:
            folder: the folder that was saved to, or a model on the Hub such as `user/name` (with the `hub` extra); a
                folder that is here goes first.
            revision: branch, tag or commit on the Hub; the main branch by default.
            token: of the Hub; by default, the one that this machine is signed in with.
            cache_dir: where copies from the Hub are kept; by default, where huggingface_hub keeps them.
            local_files_only: take what is in the cache, without the network, as HF_HUB_OFFLINE=1 does.
            overrides: constructor arguments that change no parameter (`seq_len`, `window_sizes`, `use_flash_attn`,
                `use_xpos`, `checkpoint_activations`), and those that JSON can't hold (`chunk_summarizers`, a callable
                `next_latent_loss_type`).

        Raises:
            CheckpointError: if the folder is incomplete, damaged, or of another configuration.
            OSError: if the Hub can't be reached, or has no such model.
        """
        path = hub.find(folder, revision=revision, token=token, cache_dir=cache_dir, local_files_only=local_files_only)
        model_class = cast("type[HierarchicalTransformer]", cls)
        return cast("Self", checkpoint.load_model(model_class, path, overrides))

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | bool | None = None,
        commit_message: str = "Upload model",
        revision: str | None = None,
        model_card: str | None = None,
    ) -> str:
        """Upload what `save_pretrained` writes to the Hugging Face Hub, and return the address of the commit.

        Args:
            repo_id: `user/name`; the repository is made where it isn't there.
            private: whether a repository that is made is private; by default, what the account's settings say.
            token: of the Hub; by default, the one that this machine is signed in with.
            commit_message: of the commit.
            revision: branch to upload to, which is made where it isn't there; the main one by default.
            model_card: text of the card; by default, one that `make_model_card` writes, unless the repository has one.

        Raises:
            ValueError: for a name that is none, or if the `hub` extra isn't installed.
            OSError: if the Hub can't be reached, or doesn't take the files.
        """
        return hub.push(
            cast("HierarchicalTransformer", self),
            repo_id,
            private=private,
            token=token,
            commit_message=commit_message,
            revision=revision,
            model_card=model_card,
        )
