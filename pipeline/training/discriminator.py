"""The patch discriminator that an autoencoder is trained against."""

from torch import Tensor, nn
from torch.func import functional_call


class PatchDiscriminator(nn.Module):
    """One logit for each overlapping patch of a picture: real or made (Isola et al. 2017, section 3.2.2).

    Group norm stands where the paper has batch norm, so that a picture's logits depend on it alone.
    """

    def __init__(self, width: int = 32, layers: int = 2, groups: int = 8) -> None:
        super().__init__()
        parts: list[nn.Module] = [nn.Conv2d(3, width, 4, 2, 1), nn.LeakyReLU(0.2)]
        for layer in range(1, layers + 1):
            stride = 2 if layer < layers else 1
            before, after = width * min(2 ** (layer - 1), 8), width * min(2**layer, 8)
            parts += [nn.Conv2d(before, after, 4, stride, 1, bias=False), nn.GroupNorm(groups, after)]
            parts.append(nn.LeakyReLU(0.2))
        self.layers = nn.Sequential(*parts, nn.Conv2d(width * min(2**layers, 8), 1, 4, 1, 1))
        for module in self.layers:
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.02)  # the paper's appendix 6.2

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits (B, 1, h, w) of pixels (B, 3, H, W) in [-1, 1]."""
        return self.layers(pixels)

    def held(self, pixels: Tensor) -> Tensor:
        """The logits, with a gradient for the pixels and none for the discriminator's own weights."""
        weights = {name: value.detach() for name, value in self.named_parameters()}
        return functional_call(self, weights, (pixels,))
