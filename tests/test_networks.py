"""ConvNeXt, ResNet and the VAE encoder against implementations that share no code with ours."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from lcmem_onnx.models.autoencoder import Autoencoder, AutoencoderShape, modern_attention_keys  # noqa: E402
from lcmem_onnx.models.convnext import ConvNeXt, ConvNeXtShape, Depthwise  # noqa: E402
from lcmem_onnx.models.lcmem import LCMem, normalise_samples  # noqa: E402
from lcmem_onnx.models.resnet import ResNet, ResNetShape  # noqa: E402
from lcmem_onnx.runtime.errors import CheckpointError  # noqa: E402


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("shape", "published"),
    [
        (ConvNeXtShape(3, (96, 192, 384, 768), (3, 3, 9, 3), 4, 1000), 28_589_128),
        (ConvNeXtShape(3, (96, 192, 384, 768), (3, 3, 27, 3), 4, 1000), 50_223_688),
        (ConvNeXtShape(3, (128, 256, 512, 1024), (3, 3, 27, 3), 4, 1000), 88_591_464),
        (ConvNeXtShape(3, (192, 384, 768, 1536), (3, 3, 27, 3), 4, 1000), 197_767_336),
    ],
)
def test_convnext_has_the_published_number_of_parameters(shape: ConvNeXtShape, published: int) -> None:
    with torch.device("meta"):
        network = ConvNeXt(shape)
    assert count(network) == published
    assert ConvNeXtShape.from_state(network.state_dict()) == shape
    assert shape.name.startswith("ConvNeXt-")


@pytest.mark.parametrize(("depths", "published"), [((3, 4, 6, 3), 25_557_032), ((3, 4, 23, 3), 44_549_160)])
def test_resnet_has_the_published_number_of_parameters(depths: tuple[int, ...], published: int) -> None:
    shape = ResNetShape(3, depths, 1000)
    with torch.device("meta"):
        network = ResNet(shape)
    assert count(network) == published
    assert ResNetShape.from_state(network.state_dict()) == shape


def test_convnext_computes_what_transformers_does() -> None:
    torch.manual_seed(0)
    ours = ConvNeXt(ConvNeXtShape(4, (16, 32, 48, 64), (1, 2, 1, 1), 4, 8)).eval()
    for parameter in ours.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    theirs = transformers.ConvNextModel(
        transformers.ConvNextConfig(
            num_channels=4, hidden_sizes=[16, 32, 48, 64], depths=[1, 2, 1, 1], patch_size=4, layer_norm_eps=1e-6
        )
    ).eval()
    # Both list their parameters in the order of computation; only the last norm has another place.
    features = [value for key, value in ours.state_dict().items() if key.startswith("features.")]
    names = [key for key in theirs.state_dict() if not key.startswith("layernorm.")]
    state = {name: value.reshape(theirs.state_dict()[name].shape) for name, value in zip(names, features, strict=True)}
    state |= {f"layernorm.{leaf}": ours.state_dict()[f"classifier.0.{leaf}"] for leaf in ("weight", "bias")}
    theirs.load_state_dict(state)
    x = torch.randn(2, 4, 64, 64)
    with torch.no_grad():
        expected = ours.classifier[2](theirs(x).pooler_output)
        torch.testing.assert_close(ours(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("side", [(1, 1), (2, 2), (4, 3), (4, 4), (5, 5)])
def test_the_gradients_of_a_depthwise_convolution_are_torchs(side: tuple[int, int]) -> None:
    torch.manual_seed(0)
    ours = Depthwise(6, 6, 7, padding=3, groups=6).double()
    theirs = torch.nn.Conv2d(6, 6, 7, padding=3, groups=6).double()
    theirs.load_state_dict(ours.state_dict())
    x, wanted = torch.randn(2, 3, 6, *side, dtype=torch.double)
    gradients = []
    for layer in (ours, theirs):
        seen = x.clone().requires_grad_()
        out = layer(seen)
        assert ("_SmallMaps" in type(out.grad_fn).__name__) is (layer is ours and max(side) <= 4)
        out.backward(wanted)
        gradients.append((out, seen.grad, layer.weight.grad, layer.bias.grad))
    for mine, torchs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, torchs)


def test_resnet_computes_what_transformers_does() -> None:
    torch.manual_seed(0)
    ours = ResNet(ResNetShape(3, (3, 4, 6, 3), 8)).eval()
    for name, buffer in ours.named_buffers():
        if name.endswith("running_var"):
            buffer.uniform_(0.5, 2.0)
        elif name.endswith("running_mean"):
            buffer.normal_(0, 0.1)
    theirs = transformers.ResNetModel(transformers.ResNetConfig(depths=[3, 4, 6, 3], layer_type="bottleneck")).eval()
    state = {}
    for key, value in ours.state_dict().items():
        parts = key.split(".")
        leaf = parts[-1]
        if parts[0] in ("conv1", "bn1"):
            kind = "convolution" if parts[0] == "conv1" else "normalization"
            state[f"embedder.embedder.{kind}.{leaf}"] = value
        elif parts[0].startswith("layer"):
            stem = f"encoder.stages.{int(parts[0][5]) - 1}.layers.{parts[1]}"
            if parts[2] == "downsample":
                state[f"{stem}.shortcut.{'convolution' if parts[3] == '0' else 'normalization'}.{leaf}"] = value
            else:
                kind = "convolution" if parts[2].startswith("conv") else "normalization"
                state[f"{stem}.layer.{int(parts[2][-1]) - 1}.{kind}.{leaf}"] = value
    theirs.load_state_dict(state)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = ours.fc(theirs(x).pooler_output.flatten(1))
        torch.testing.assert_close(ours(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("latent_channels", "quant_conv"), [(4, True), (16, False), (16, True), (4, False)])
def test_the_encoder_is_diffusers_autoencoder_and_gives_the_mode(latent_channels: int, quant_conv: bool) -> None:
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    theirs = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(32, 32, 64),
        layers_per_block=2,
        latent_channels=latent_channels,
        use_quant_conv=quant_conv,
        use_post_quant_conv=quant_conv,
    ).eval()
    state = {key: value for key, value in theirs.state_dict().items() if key.startswith(("encoder.", "quant_conv."))}
    shape = AutoencoderShape.from_state(state)
    assert (shape.latent_channels, shape.quant_conv, shape.layers_per_block) == (latent_channels, quant_conv, 2)
    ours = Autoencoder(shape).eval()
    ours.load_state_dict(state)
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs.encode(x).latent_dist.mode())


def test_old_and_convolutional_attention_weights_are_renamed() -> None:
    weight = torch.randn(8, 8)
    old = {
        "encoder.mid_block.attentions.0.query.weight": weight[:, :, None, None],
        "encoder.mid_block.attentions.0.proj_attn.bias": weight[0],
        "encoder.conv_in.weight": torch.zeros(8, 3, 1, 1),
    }
    new = modern_attention_keys(old)
    assert new["encoder.mid_block.attentions.0.to_q.weight"].shape == (8, 8)
    assert "encoder.mid_block.attentions.0.to_out.0.bias" in new
    assert new["encoder.conv_in.weight"].shape == (8, 3, 1, 1)


def test_samples_are_normalised_by_their_own_statistics() -> None:
    latents = torch.randn(3, 4, 16, 16) * 7 + 2
    latents[0, 0] = 5.0
    normal = normalise_samples(latents)
    assert not normal[0, 0].any()
    torch.testing.assert_close(normal[1:].mean(dim=(2, 3)), torch.zeros(2, 4), atol=1e-5, rtol=0)
    torch.testing.assert_close(normal[1:].std(dim=(2, 3)), torch.full((2, 4), 0.5))
    torch.testing.assert_close(normalise_samples(normal), normal, atol=1e-5, rtol=0)


def test_images_are_clamped_and_enter_the_vae_between_0_and_1() -> None:
    network = LCMem(ConvNeXtShape(4, (8, 16), (1, 1), 2, 16), AutoencoderShape(48, (8, 16), 1, 4, 4, middle_attention=False)).eval()
    seen = []
    network.vae.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        network.embed(torch.linspace(-1, 2, 2 * 3 * 32 * 32).view(2, 3, 32, 32))
    assert float(seen[0].min()) == 0.0
    assert float(seen[0].max()) == 1.0


def test_a_vae_that_takes_odd_channels_is_refused() -> None:
    with pytest.raises(CheckpointError, match="5 channels"):
        Autoencoder(AutoencoderShape(5, (8, 16), 1, 4, 4))
