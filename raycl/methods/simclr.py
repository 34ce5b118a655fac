"""SimCLR: a simple framework for contrastive learning of visual representations.

Chen, Kornblith, Norouzi, Hinton, ICML 2020, arXiv 2002.05709.

    h_i = f(x_i),  z_i = g(h_i),  loss = NT-Xent(z; temperature)

Two random views of every image are pulled together and pushed from all other images of the global
batch. The loss is the paper's mean over the 2N anchors; the released code back-propagates twice
that. Where v1 and v2 of the released code differ, v1 is followed: two linear layers in the
projector. Brightness is multiplicative as in v2; `views.color.additive_brightness` gives v1's.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor, cat
from torch.nn import Identity

from raycl.methods.base import (
    Backbone,
    Batch,
    DataInfo,
    Method,
    Output,
    ResNetBackbone,
    Settings,
    Step,
    Stream,
)
from raycl.nn.heads import mlp
from raycl.nn.losses import nt_xent
from raycl.views.image import Blur, Color, Crop, ImageView


class Projector(Settings):
    """g: Linear-BN-ReLU per hidden layer, then Linear-BN; 0 layers: the loss is taken on h."""

    layers: int = Field(2, ge=0, le=4)
    hidden: int = Field(2048, ge=1)
    dim: int = Field(128, ge=1)


class SimCLR(Method):
    """SimCLR with a ResNet encoder (paper section 2; defaults of section 2.1 and appendix B.9)."""

    paper = "arXiv 2002.05709"

    class Config(Settings):
        temperature: float = Field(0.1, gt=0, le=100)
        batch_norm: Literal["global", "lane"] = "global"
        encoder: Backbone = ResNetBackbone()
        projector: Projector = Projector()

    def __init__(self, config: Config | None = None, data: DataInfo | None = None) -> None:
        super().__init__(config, data)
        scope = self.config.batch_norm
        self.encoder = self.config.encoder.build(scope)
        head = self.config.projector
        sizes = [self.encoder.dim, *[head.hidden] * (head.layers - 1), head.dim]
        self.projector = mlp(sizes, last_norm="scale", scope=scope) if head.layers else Identity()

    @classmethod
    def views(cls, config: Config) -> dict[str, Stream]:
        view = ImageView(size=224, crop=Crop(), color=Color(), gray=0.2, blur=Blur())
        return {"images": Stream(views={"view1": view, "view2": view})}

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        h = self.encoder(cat([batch["view1"], batch["view2"]]))
        z1, z2 = self.projector(h).chunk(2)
        return {"z1": z1, "z2": z2, "h": h[: len(z1)]}

    def objective(self, embeddings: dict[str, Tensor], step: Step) -> Output:
        loss = nt_xent(embeddings["z1"], embeddings["z2"], self.config.temperature)
        return Output(loss, embedding=embeddings["h"].detach())
