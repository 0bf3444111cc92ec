"""Attention and patch features of the architectures that we serve, against what the networks themselves compute."""

import numpy as np
import pytest
import torch
from torch.nn import functional

import data_adapters
from lejepa_med.models.encoder import create_encoder
from lejepa_med.models.folder import LoadedEncoder
from lejepa_med.models.patches import attention_maps, patch_maps

SIZES = {"global_size": 32, "local_size": 32, "n_local": 0}


def loaded(backbone: str, modality: str = "images") -> LoadedEncoder:
    torch.manual_seed(0)
    adapter = data_adapters.create(modality, **SIZES)
    module = create_encoder(backbone, adapter.spec)
    info = {"weights_sha256": "x", "adapter": adapter.describe(), "spec": {"dims": adapter.spec.dims}}
    return LoadedEncoder(module=module, adapter=adapter, info=info, name="x", device="cpu")


def seen_by_the_network(encoder: LoadedEncoder, pixels: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    """The softmax weights of the last block as its own attention is computed, (n, heads, from, to)."""
    found: list[torch.Tensor] = []
    attend = functional.scaled_dot_product_attention

    def kept(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **options: object) -> torch.Tensor:
        length = key.shape[-2]
        identity = torch.eye(length, dtype=value.dtype).expand(*key.shape[:-1], length)
        found.append(attend(query, key, identity, **options))  # type: ignore[arg-type]
        return attend(query, key, value, **options)  # type: ignore[arg-type]

    with monkeypatch.context() as patch, torch.inference_mode():
        patch.setattr(functional, "scaled_dot_product_attention", kept)
        encoder.module(pixels)
    return found[-1]


def test_attention_is_what_the_network_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, pixels = loaded("vit_tiny_patch16_224"), torch.rand(3, 3, 32, 32)
    expected = seen_by_the_network(encoder, pixels, monkeypatch).mean(dim=1)[:, 0, 1:].reshape(3, 2, 2)
    found = attention_maps(encoder, pixels)
    assert found is not None and found.shape == (3, 2, 2)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)
    assert not encoder.module.backbone.blocks[-1].attn._forward_pre_hooks, "nothing stays on the served network"


def test_volumes_have_maps_of_planes() -> None:
    encoder, cubes = loaded("monai:vit_tiny", "mri3d"), torch.rand(2, 1, 32, 32, 32)
    attention, features = attention_maps(encoder, cubes), patch_maps(encoder, cubes)
    assert attention is not None and attention.shape == (2, 2, 2, 2)
    assert features is not None and features.shape[:4] == (2, 2, 2, 2)
    assert (attention > 0).all() and attention.sum() <= 2.0001, "a share of what a patch attends to"


def test_cnns_have_fine_features_and_no_attention() -> None:
    encoder, pixels = loaded("resnet18"), torch.rand(2, 3, 32, 32)
    assert attention_maps(encoder, pixels) is None
    fine, plain = patch_maps(encoder, pixels, side=128), patch_maps(encoder, pixels, side=32)
    assert fine is not None and fine.shape == (2, 4, 4, 512) and plain is not None and plain.shape == (2, 1, 1, 512)
