"""The patch discriminator of the adversarial autoencoder recipes."""

from torch import Tensor, nn
from torch.func import functional_call


class PatchDiscriminator(nn.Module):
    """Classifies each overlapping patch of an image as real or generated (Isola et al. 2017, section 3.2.2).

    It uses group norm where the paper has batch norm, so that the logits of an image do not depend on its batch.
    """

    def __init__(self, width: int = 32, layers: int = 2, groups: int = 8) -> None:
        super().__init__()
        modules: list[nn.Module] = [nn.Conv2d(3, width, 4, 2, 1), nn.LeakyReLU(0.2)]
        for layer in range(1, layers + 1):
            stride = 2 if layer < layers else 1
            in_channels, out_channels = width * min(2 ** (layer - 1), 8), width * min(2**layer, 8)
            modules += [nn.Conv2d(in_channels, out_channels, 4, stride, 1, bias=False)]
            modules += [nn.GroupNorm(groups, out_channels), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*modules, nn.Conv2d(width * min(2**layers, 8), 1, 4, 1, 1))
        for module in self.layers:
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.02)  # Isola et al. 2017, appendix 6.2

    def forward(self, pixels: Tensor) -> Tensor:
        """Return logits (B, 1, h, w) for pixels (B, 3, H, W) in [-1, 1]."""
        return self.layers(pixels)

    def frozen_logits(self, pixels: Tensor) -> Tensor:
        """Return the logits of `forward` with a gradient for the pixels, but none for the discriminator's weights."""
        weights = {name: value.detach() for name, value in self.named_parameters()}
        return functional_call(self, weights, (pixels,))
