"""What families that can take a row for an image have in common."""

import abc
import math

from pydantic import Field

from pofx.domain import Domain
from pofx.errors import OptionError
from pofx.models.base import GradientConfig, Widths


class ImageConfig(GradientConfig, abc.ABC):
    """Options of families that can take a row for an image."""

    shape: Widths | None = Field(None, description="of images in the columns of a table: (H, W) or (C, H, W); None: the data's own")

    def shape_of(self, domain: Domain) -> tuple[int, ...]:
        """As said, or the domain's."""
        return self.shape or domain.shape

    def picture(self, domain: Domain) -> tuple[int, int, int]:
        """(C, H, W).

        Raises:
            OptionError: the rows are no images, or of another size.
        """
        shape = self.shape_of(domain)
        if len(shape) not in (2, 3):
            raise OptionError(f"nets of convolutions are for images (H, W) or (C, H, W), got shape {shape}")
        if math.prod(shape) != len(domain):
            raise OptionError(f"images of shape {shape} have {math.prod(shape)} numbers, got {len(domain)} columns")
        channels, height, width = (1, *shape)[-3:]
        return channels, height, width
