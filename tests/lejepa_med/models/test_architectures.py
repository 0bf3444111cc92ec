"""One training step on many timm architectures: any family, any number of channels, and sizes that are not 224."""

import pytest
import torch

import data_adapters
from data_adapters.base import Spec
from lejepa_med.methods.base import Projector
from lejepa_med.methods.lejepa.method import LeJEPAMethod
from lejepa_med.models.encoder import create_encoder
from lejepa_med.objective import LeJEPA, SIGReg

# The smallest member of each family, and the side in pixels where 64 does not suit its windows or strides.
NAMES = """
    resnet18 resnet26d resnext26ts seresnet18 wide_resnet50_2 resnetv2_50 res2net50_14w_8s resnest14d ecaresnet50t
    gcresnext26ts skresnet18 nf_resnet26 densenet121 vgg11_bn dpn48b dla34 hrnet_w18_small selecsls42 xception41
    inception_v4:96 inception_resnet_v2:96 cspresnet50 cspdarknet53 vovnet39a regnetx_002 regnety_002 regnetz_b16
    repvgg_a0 rexnet_100 ghostnet_100 mobilenetv2_050 mobilenetv3_small_050 mobilenetv4_conv_small_035 mnasnet_050
    lcnet_035 tinynet_e fbnetc_100 hardcorenas_a efficientnet_b0 efficientnetv2_rw_t mixnet_s spnasnet_100
    convnext_atto convnextv2_atto inception_next_atto fasternet_t0 starnet_s1 repvit_m0_9 mobileone_s0 hgnetv2_b0
    edgenext_xx_small poolformer_s12 poolformerv2_s12 caformer_s18 focalnet_tiny_srf davit_tiny:224
    vit_tiny_patch16_224 vit_small_patch14_dinov2:56 deit_tiny_patch16_224 deit3_small_patch16_224
    beit_base_patch16_224 eva02_tiny_patch14_224:56 cait_xxs24_224 xcit_nano_12_p16_224
    swin_tiny_patch4_window7_224:56 swinv2_tiny_window8_256 levit_128s pit_ti_224 maxvit_tiny_tf_224
    coatnet_0_rw_224 coat_tiny twins_svt_small pvt_v2_b0 visformer_tiny volo_d1_224 nest_tiny mvitv2_tiny
    gcvit_xxtiny:224 fastvit_t8 efficientformer_l1:224 efficientformerv2_s0:224 efficientvit_b0 tiny_vit_5m_224
    hiera_tiny_224:224 mixer_s16_224:224 resmlp_12_224:224 gmlp_ti16_224:224 sequencer2d_s:224 crossvit_9_240:240
"""
FAMILIES = {name: int(size or 64) for name, _, size in (word.partition(":") for word in NAMES.split())}
QUICK = ["convnextv2_atto", "regnety_002", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "levit_128s"]


def step(name: str, size: int, channels: int) -> None:
    """Forward, backward and update of two views; every weight gets a finite gradient."""
    torch.manual_seed(0)
    base = data_adapters.create("images", n_global=2, n_local=0, global_size=size).spec
    half = (0.5,) * channels
    spec = Spec(**{**vars(base), "channels": channels, "mean": half, "std": half})
    encoder = create_encoder(name, spec)
    method = LeJEPAMethod(
        encoder, Projector(encoder.dim, hidden=16, out_dim=8), LeJEPA(0.05, SIGReg(slices=16))
    ).train()
    optimizer = torch.optim.AdamW(method.parameters(), lr=1e-3)
    before = {key: value.detach().clone() for key, value in encoder.named_parameters()}
    views = torch.randint(0, 256, (2, 4, channels, size, size), dtype=torch.uint8)
    out = method(views, None, seed=0, step=0)
    assert out.features.shape == (4, encoder.dim) and out.z.shape == (4, 8) and out.loss.isfinite()
    out.loss.backward()
    idle = [key for key, value in encoder.named_parameters() if value.grad is None]
    assert not idle, f"without a gradient, on which DDP stops: {idle}"
    assert all(value.grad.isfinite().all() for value in encoder.parameters() if value.grad is not None)
    optimizer.step()
    moved = [key for key, value in encoder.named_parameters() if not torch.equal(value, before[key])]
    assert len(moved) > 0.5 * len(before)  # the first step passes by what lies behind gates that start at 0


def test_the_sweep_has_at_least_60_families() -> None:
    assert len(FAMILIES) >= 60


@pytest.mark.parametrize(("name", "channels"), list(zip(QUICK, (1, 2, 3, 4, 5), strict=True)))
def test_one_step_of_five_families(name: str, channels: int) -> None:
    step(name, FAMILIES[name], channels)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("index", "name"), list(enumerate(FAMILIES)))
def test_one_step_of_every_family(index: int, name: str) -> None:
    step(name, FAMILIES[name], channels=1 + index % 5)
