"""A method of one layer that gets into trouble when it is told to."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any, Literal

from pydantic import Field
from torch import Tensor, nn

from raycl.methods.base import Batch, DataInfo, Method, Output, Settings, Step, Stream
from raycl.nn.losses import nt_xent
from raycl.views.image import ImageView


class Troubled(Method):
    class Config(Settings):
        temperature: float = Field(0.2, gt=0, le=100)
        dim: int = Field(8, ge=1)
        trouble: Literal["none", "nan", "refuses", "breaks", "dies"] = "none"
        marker: str = ""

    def __init__(self, config: Any = None, data: DataInfo | None = None) -> None:
        super().__init__(config, data)
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, self.config.dim))

    @classmethod
    def views(cls, config: Any) -> dict[str, Stream]:
        view = ImageView(size=8, flip=0)
        return {"images": Stream(views={"view1": view, "view2": view})}

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        return {name: self.encoder(batch[name]) for name in ("view1", "view2")}

    def objective(self, embeddings: dict[str, Tensor], step: Step) -> Output:
        one, two = embeddings["view1"], embeddings["view2"]
        loss = nt_xent(one, two, self.config.temperature)
        if step.index >= 2:
            loss = loss * self._trouble()
        return Output(loss, embedding=one.detach())

    def _trouble(self) -> float:
        marker = Path(self.config.marker)
        if self.config.trouble == "nan":
            return float("nan")
        if self.config.trouble == "breaks":
            raise RuntimeError("something broke")
        if self.config.trouble == "dies" and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return 1.0
