"""A whole data set, embedded: what online kNN, cluster-based methods and protocols ask for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from raycl.data.loader import walk
from raycl.data.shards import Shards
from raycl.errors import RayclError
from raycl.methods.base import Batch, Step
from raycl.nn import collectives
from raycl.train.balance import MethodLabels
from raycl.views.image import ImageView
from raycl.views.packing import GraphView


@dataclass
class ShardCorpus:
    """Samples `ids` of a data set seen through one view; rows are shared out over the ranks.

    Of samples without images the view is of graphs, or the name of the field that holds an array.
    """

    shards: Shards
    ids: np.ndarray
    view: ImageView | GraphView | str
    batch: int
    device: torch.device
    threads: int = 1
    pseudo_labels: MethodLabels | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def image_view(self) -> ImageView:
        """The view, for protocols that look at images."""
        assert isinstance(self.view, ImageView), "evaluate() refuses samples without images"
        return self.view

    def batches(self, masked: bool = False, *, seed: int = 0, epoch: int = 0) -> Iterator[Batch]:
        """All samples in the order of `ids`, once; see `walk`."""
        return walk(
            self.shards,
            self.view,
            self.ids,
            batch=self.batch,
            device=self.device,
            threads=self.threads,
            seed=seed,
            epoch=epoch,
            masked=masked,
        )

    def labels(self) -> Tensor:
        """(N,) in the order of `ids`."""
        return torch.from_numpy(self.shards.column("label")[self.ids])

    def balance(self, labels: Tensor, step: Step) -> None:
        """Makes pseudo-labels (N,) occur equally often in the epoch that begins with `step`."""
        if self.pseudo_labels is None:
            raise RayclError(
                "data.balance: the method balances its pseudo-labels; set data.balance=method"
            )
        if collectives.rank() == 0:
            self.pseudo_labels.write(step.epoch, labels.cpu().numpy())
        collectives.barrier()  # the epoch's first rows are drawn by these labels

    @torch.no_grad()
    def embed(self, encoder: nn.Module) -> tuple[Tensor, Tensor]:
        """Ids (N,) and features (N, D) on the CPU, in the order of `ids`, on every rank.

        The encoder runs in evaluation mode and is left as it was. It sees a view, or of graphs the
        batch; rows of one that embeds nodes are all nodes of all graphs, in one process alone.
        """
        rank, world = collectives.rank(), collectives.world_size()
        share = -(-len(self.ids) // world)
        mine = np.resize(self.ids[rank::world], share)  # equal shares; what is repeated is cut off
        training = encoder.training
        encoder.eval()
        graphs = isinstance(self.view, GraphView)
        features = torch.cat(
            [
                encoder(batch if graphs else batch["view"]).flatten(1).float()
                for batch in replace(self, ids=mine).batches()
            ]
        )
        encoder.train(training)
        if world == 1:
            return torch.from_numpy(self.ids), features.cpu()
        every = collectives.concat(features).unflatten(0, (world, share))
        return torch.from_numpy(self.ids), every.transpose(0, 1).flatten(0, 1)[: len(self)].cpu()
