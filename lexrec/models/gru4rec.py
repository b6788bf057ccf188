"""GRU4Rec: a recurrent network over item histories.

Paper: Hidasi et al. 2016, Session-based Recommendations with Recurrent Neural Networks,
https://arxiv.org/abs/1511.06939; the gates are those of Cho et al. 2014, https://arxiv.org/abs/1406.1078

    z_t = sigmoid(W_z x_t + U_z h_{t-1})                          eq. 2, h_0 = 0
    c_t = tanh(W x_t + r_t * (U h_{t-1})),
    r_t = sigmoid(W_r x_t + U_r h_{t-1})                          eq. 3-4
    h_t = (1 - z_t) * h_{t-1} + z_t * c_t                         eq. 1
    y_t = V h_t + b,  scores = <y_t, E[i]>                        one table for input and output

Differences from the official code: histories are windows of one user instead of session-parallel streams;
losses come from objectives/ (the code has TOP1, BPR and their max forms); as in PyTorch the reset gate acts
on U h after the product and z is 1 - z of the paper; gates have biases; y_t brings the state back to the
width of the item vectors. All matrices start from Xavier's uniform, as there.

Rows are shifted to the left for the recurrence, so that padding stands after the items and no state has
seen it. `step` carries the state on; once a window is full, `begin` forgets its oldest item while a state
would not, so from then on each event reads the window again.

Dimension key: B batch, L positions, H width of the state, D width.
"""

from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from lexrec.data.batch import Batch
from lexrec.item_encoders.base import Embedded, ItemEncoder
from lexrec.models._layers import Dropout, Linear
from lexrec.models.base import Encoded, ModelConfig, SequenceModel, State, append


class GRU4RecConfig(ModelConfig):
    """Sizes of GRU4Rec."""

    name: Literal["gru4rec"] = "gru4rec"
    n_layers: int = Field(1, ge=1)
    state_dim: int = Field(128, ge=1)
    """Width of the recurrent state."""
    dropout: float = Field(0.3, ge=0, lt=1)
    """On the item vectors, and between layers."""


class _Run(NamedTuple):
    """What the layers made of a row: outputs of the last one, and each layer's newest state."""

    y_BLD: Tensor
    states: tuple[Tensor, ...]
    """[B, H] a layer; zero where there is no item yet."""


class GRU4Rec(SequenceModel):
    """GRU layers over item vectors, each brought back to the width of the item vectors."""

    causal = True
    layout = "packed"
    incremental = True

    config: GRU4RecConfig

    def __init__(self, config: GRU4RecConfig, items: ItemEncoder) -> None:
        super().__init__()
        self.config = config
        self.items = items
        self.max_len = config.max_len
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.n_layers))

    def forward(self, batch: Batch) -> Encoded:
        embedded = self.items(batch)
        return Encoded(self._run(batch, embedded, None).y_BLD, embedded.aux)

    def begin(self, batch: Batch) -> State:
        run = self._run(batch, self.items(batch), None)
        return State(batch, run.y_BLD[:, -1], run.states)

    def step(self, state: State, item_B: Tensor, time_B: Tensor | None = None) -> State:
        longer = append(state.batch, item_B, time_B, self.max_len)
        is_full = bool((state.batch.length_B == self.max_len).any())
        # An encoder that reads ahead gives the older items other vectors now.
        if is_full or not self.items.causal:
            return self.begin(longer)
        run = self._run(*_newest(longer, self.items(longer)), state.cache)
        return State(longer, run.y_BLD[:, -1], run.states)

    def _run(self, batch: Batch, embedded: Embedded, before: tuple[Tensor, ...] | None) -> _Run:
        is_item_BL = batch.is_item_BL
        x_BLD, states = embedded.x_BLD, []
        for i, block in enumerate(self.blocks):
            x_BLD, state_BH = block(self.dropout(x_BLD), is_item_BL, before and before[i])
            if i == 0 and embedded.after_block0_BLD is not None:
                x_BLD = x_BLD + embedded.after_block0_BLD
            states.append(state_BH)
        return _Run(x_BLD, tuple(states))


class _Block(nn.Module):
    """One GRU layer and the map back to the width of the item vectors."""

    def __init__(self, config: GRU4RecConfig) -> None:
        super().__init__()
        self.gru = nn.GRU(config.dim, config.state_dim, batch_first=True)
        self.out = Linear(config.state_dim, config.dim)
        for parameter in self.parameters():
            if parameter.ndim == 1:
                nn.init.zeros_(parameter)
                continue
            for gate_HD in parameter.chunk(3) if len(parameter) == 3 * config.state_dim else [parameter]:
                nn.init.xavier_uniform_(gate_HD)

    def forward(self, x_BLD: Tensor, is_item_BL: Tensor, before_BH: Tensor | None) -> tuple[Tensor, Tensor]:
        n_pad_B = (~is_item_BL).sum(1)
        start_1BH = None if before_BH is None else before_BH[None]
        # Under autocast cuDNN's recurrence would run in float16, whose small gradients vanish unscaled.
        with torch.autocast(x_BLD.device.type, enabled=False):
            left_BLD = _rolled(x_BLD, n_pad_B).to(self.out.weight.dtype)
            left_BLH, _ = self.gru(left_BLD, start_1BH)
        h_BLH = _rolled(left_BLH, -n_pad_B) * is_item_BL[..., None]
        return self.out(h_BLH), h_BLH[:, -1]


def _rolled(x_BLD: Tensor, by_B: Tensor) -> Tensor:
    """Each row shifted to the left by its own number of places, around the end; negative: to the right."""
    L = x_BLD.shape[1]
    from_BL = (torch.arange(L, device=x_BLD.device) + by_B[:, None]) % L
    return x_BLD.gather(1, from_BL[..., None].expand_as(x_BLD))


def _newest(batch: Batch, embedded: Embedded) -> tuple[Batch, Embedded]:
    """The newest position alone."""
    after_block0_BLD = embedded.after_block0_BLD
    after_block0_B1D = None if after_block0_BLD is None else after_block0_BLD[:, -1:]
    newest = Batch(batch.item_BL[:, -1:], batch.is_item_BL[:, -1].long(), batch.user_B)
    return newest, Embedded(embedded.x_BLD[:, -1:], embedded.aux, after_block0_B1D)
